"""Documents packed into rows of fixed length, in the two streams of the joint objective.

A row holds, for each of its documents, the clean tokens, which the autoregressive loss reads, and a
noisy copy of what is to be learned, cut into blocks, which the diffusion loss reads. Attention
keeps documents, streams and blocks apart (see `dual_stream`), so the order in a row is free and
documents are packed as they fit.

A noisy block masks m of its n tokens, m uniform in 1 to n, and the loss of each weighs n / m. Its
expectation is that of drawing t uniform in (0, 1), masking each token with probability t and
weighing by 1 / t (LLaDA, arXiv 2502.09992, section 2.1 and appendix A), without the rare huge
weights of a small t. `Masking.all_masked` adds blocks with every mask, which decoding starts from;
they weigh 1, so the loss then is no longer that expectation.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100  # a target that no loss reads


@dataclass(frozen=True)
class Document:
    """One text to learn from. start: its first token with a loss; those before it are a prompt."""

    tokens: list[int]
    start: int = 1


@dataclass(frozen=True)
class Masking:
    """How the noisy copy of a document is made.

    block_lengths: one is drawn for each document, each as likely as often as it stands here.
    keep_first: chance that a block's first token stays clean, as decoding finds it (its seed).
    all_masked: chance that all of a block is masked, but for a first token kept clean: what the
        first denoising step and the draft of self-speculation see. Other blocks draw m.
    """

    mask_id: int
    eos_id: int
    block_lengths: tuple[int, ...] = (8, 16, 32, 32)
    keep_first: float = 0.75
    all_masked: float = 0.0


class Rows(NamedTuple):
    """A batch of rows; every tensor is [batch, length], int64 but `weights`, float32.

    tokens: ids, masks among them.
    positions: place in the document.
    document: which of the row's documents; -1 fills up the row.
    block: which of the row's noisy blocks; -1 in the clean stream.
    block_start: noisy: position at which the block starts; clean: 0.
    targets: clean: the next token; noisy: the token under a mask; else IGNORED.
    weights: of each target's loss: 1, or n / m under a mask.
    """

    tokens: Tensor
    positions: Tensor
    document: Tensor
    block: Tensor
    block_start: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "Rows":
        return Rows(*(tensor.to(device, non_blocking=True) for tensor in self))


class _Piece:
    """One document in its streams: lists beside each other, as the fields of Rows."""

    def __init__(self, document: Document, noise: Masking | None, rng: random.Random) -> None:
        tokens, start = document.tokens, document.start
        n = len(tokens)
        self.tokens = list(tokens)
        self.positions = list(range(n))
        self.block = [-1] * n
        self.block_start = [0] * n
        self.targets = [IGNORED] * (start - 1) + tokens[start:] + [IGNORED]
        self.weights = [1.0] * n
        if noise is not None:
            self._add_noisy(document, noise, rng)

    def __len__(self) -> int:
        return len(self.tokens)

    def _add_noisy(self, document: Document, noise: Masking, rng: random.Random) -> None:
        length = rng.choice(noise.block_lengths)
        n = len(document.tokens)
        # Half the time blocks start where a decoder's first block does, else anywhere.
        first = document.start
        if rng.random() < 0.5:
            first += rng.randrange(max(n - document.start, 1))
        # What a decoder sees behind an end is the end again; a text cut off has nothing there.
        ends = document.tokens[-1] == noise.eos_id
        for number, begin in enumerate(range(first, n, length)):
            clean = document.tokens[begin : begin + length]
            if ends:
                clean = clean + [noise.eos_id] * (length - len(clean))
            all_masked = rng.random() < noise.all_masked
            seeded = rng.random() < noise.keep_first
            candidates = range(1 if seeded else 0, len(clean))
            if not candidates:
                continue
            count = len(candidates)
            if not all_masked:
                count = rng.randint(1, count)
            masked = set(rng.sample(candidates, count))
            self.tokens += [noise.mask_id if i in masked else t for i, t in enumerate(clean)]
            self.positions += range(begin, begin + len(clean))
            self.block += [number] * len(clean)
            self.block_start += [begin] * len(clean)
            self.targets += [t if i in masked else IGNORED for i, t in enumerate(clean)]
            self.weights += [len(candidates) / count] * len(clean)


def pack(
    documents: Iterable[Document],
    noise: Masking | None,
    length: int,
    max_tokens: int,
    rng: random.Random,
) -> Rows:
    """Pack documents into as few rows of `length` tokens as first fit, the longest first, finds.

    Documents are taken until they hold `max_tokens`, noisy copies included. Rows are longer where
    one document needs more. noise: None leaves the noisy stream out.
    """
    pieces, n_tokens = [], 0
    for document in documents:
        pieces.append(piece := _Piece(document, noise, rng))
        n_tokens += len(piece)
        if n_tokens >= max_tokens:
            break
    pieces.sort(key=len, reverse=True)
    length = max(length, len(pieces[0]))
    rows: list[list[_Piece]] = []
    left: list[int] = []
    for piece in pieces:
        for i, room in enumerate(left):
            if len(piece) <= room:
                rows[i].append(piece)
                left[i] -= len(piece)
                break
        else:
            rows.append([piece])
            left.append(length - len(piece))
    fields = zip(*(_row(pieces, length) for pieces in rows), strict=True)
    return Rows(*(torch.stack(field) for field in fields))


def _row(pieces: Sequence[_Piece], length: int) -> tuple[Tensor, ...]:
    """The fields of Rows for one row [length]."""
    document, block, n_blocks = [], [], 0
    for i, piece in enumerate(pieces):
        document += [i] * len(piece)
        block += [b if b < 0 else n_blocks + b for b in piece.block]
        n_blocks = max([n_blocks - 1, *block[-1:]]) + 1
    fields = {"document": document, "block": block}
    for name in ("tokens", "positions", "block_start", "targets", "weights"):
        fields[name] = [value for piece in pieces for value in getattr(piece, name)]
    fill = {"document": -1, "block": -1, "targets": IGNORED}
    return tuple(
        torch.tensor(fields[name] + [fill.get(name, 0)] * (length - len(document)))
        for name in Rows._fields
    )
