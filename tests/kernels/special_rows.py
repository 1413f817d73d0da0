"""Rows of logits that are not ordinary, and what their statistics must be."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dlm_kernels import Confidence
from dlm_kernels.error_word import NAN_LOGITS

INF, NAN = math.inf, math.nan
FLOAT16_LOWEST = torch.finfo(torch.float16).min


class Row(NamedTuple):
    """A row of `fill` with other values at some ids, and what must come of it."""

    name: str
    fill: float
    values: dict[int, float]
    token: int
    probability: float
    logsumexp: float
    entropy: float
    margin: float
    banned: tuple[int, ...] = ()
    skipped: bool = False
    error: int = 0
    vocab: int | None = None  # of `special_rows`, if None


def invalid(name: str, fill: float, values: dict[int, float], **rest) -> Row:
    return Row(name, fill, values, -1, NAN, NAN, NAN, NAN, **rest)


def certain(name: str, fill: float, values: dict[int, float], token: int, **rest) -> Row:
    return Row(name, fill, values, token, 1.0, INF, 0.0, 1.0, **rest)


def skipped(name: str, fill: float, values: dict[int, float]) -> Row:
    return Row(name, fill, values, -1, 0.0, 0.0, 0.0, 0.0, skipped=True)


def settled(name: str, fill: float, values: dict[int, float], token: int, **rest) -> Row:
    """All probability lies on one id."""
    return Row(name, fill, values, token, 1.0, values[token], 0.0, 1.0, **rest)


def uniform(name: str, fill: float, vocab: int) -> Row:
    entropy = math.log(vocab)
    p, margin = 1 / vocab, 0.0 if vocab > 1 else 1.0
    return Row(name, fill, {}, 0, p, fill + entropy, entropy, margin, vocab=vocab)


def special_rows(vocab: int, far: int, chunk: int) -> list[Row]:
    """One of each kind over `vocab` ids, cut into two chunks.

    Args:
        vocab: ids, the second chunk a partial tile.
        far: an id of the first chunk, more than a tile behind id 9.
        chunk: the first id of the second chunk.
    """
    last = vocab - 1
    rows = [
        # A row with NaN: token -1, statistics NaN, the error word set.
        invalid("nan-first", 0.0, {0: NAN}, error=NAN_LOGITS),
        invalid("nan-in-the-first-chunk", 0.0, {far: NAN}, error=NAN_LOGITS),
        invalid("nan-last", 0.0, {last: NAN}, error=NAN_LOGITS),
        invalid("nan-everywhere", NAN, {}, error=NAN_LOGITS),
        invalid("nan-after-the-maximum", 0.0, {5: 50.0, 6: NAN}, error=NAN_LOGITS),
        invalid("nan-beside-minus-inf", -INF, {5: NAN}, error=NAN_LOGITS),
        invalid("nan-and-plus-inf-in-one-chunk", 0.0, {5: NAN, far: INF}, error=NAN_LOGITS),
        invalid("nan-and-plus-inf-in-two-chunks", 0.0, {5: INF, last: NAN}, error=NAN_LOGITS),
        invalid("nan-at-a-banned-id", 0.0, {5: NAN}, banned=(5,), error=NAN_LOGITS),
        # A row all -inf, or with +inf: token -1 and NaN; the id and probability 1 if exactly one.
        invalid("all-minus-inf", -INF, {}),
        invalid("all-minus-inf-and-one-id", -INF, {}, vocab=1),
        invalid("two-plus-inf-in-one-vector", 0.0, {8: INF, 9: INF}),
        invalid("two-plus-inf-in-two-tiles", 0.0, {8: INF, far: INF}),
        invalid("two-plus-inf-in-two-chunks", 0.0, {8: INF, last: INF}),
        invalid("plus-inf-everywhere", INF, {}),
        invalid("plus-inf-at-a-banned-id", 0.0, {8: INF}, banned=(8,)),
        invalid("plus-inf-at-a-banned-id-and-another", 0.0, {8: INF, 70: INF}, banned=(8,)),
        certain("one-plus-inf-first", 0.0, {0: INF}, 0),
        certain("one-plus-inf-last", 0.0, {last: INF}, last),
        certain("one-plus-inf-among-minus-inf", -INF, {far: INF}, far),
        certain("one-plus-inf-beside-a-ban", 0.0, {8: INF}, 8, banned=(7, 9)),
        certain("one-plus-inf-and-one-id", INF, {}, 0, vocab=1),
        # A skipped row: token -1, statistics 0, whatever is in it.
        skipped("skipped", 0.0, {5: 1.0}),
        skipped("skipped-with-nan", 0.0, {5: NAN}),
        skipped("skipped-with-two-plus-inf", 0.0, {5: INF, 6: INF}),
        skipped("skipped-all-minus-inf", -INF, {}),
        # Hidden and far apart logits.
        settled("minus-inf-but-one-first", -INF, {0: 2.5}, 0),
        settled("minus-inf-but-one-in-the-second-chunk", -INF, {chunk: -7.0}, chunk),
        settled("minus-inf-but-one-last", -INF, {last: 1e4}, last),
        settled("lowest-float16-but-one", FLOAT16_LOWEST, {7: 1.0}, 7),
        settled("lowest-float16-but-one-in-the-second-chunk", FLOAT16_LOWEST, {last: 1.0}, last),
        settled("minus-1e4-but-one-of-1e4", -1e4, {far: 1e4}, far),
        uniform("all-equal", 0.5, vocab),
        uniform("all-1e4", 1e4, vocab),
        uniform("all-minus-1e4", -1e4, vocab),
        uniform("all-lowest-float16", FLOAT16_LOWEST, vocab),
        uniform("one-id", -3.0, 1),
        uniform("two-equal-ids", 4.0, 2),
        # Nothing left to choose.
        invalid("every-id-banned", 0.0, {}, banned=(0, 1, 2), vocab=3),
        invalid("every-finite-id-banned", -INF, {5: 1.0, last: 2.0}, banned=(5, last)),
    ]
    return [row if row.vocab else row._replace(vocab=vocab) for row in rows]


def expand(row: Row, dtype: torch.dtype, device: str) -> Tensor:
    x = torch.full((row.vocab,), row.fill, dtype=dtype, device=device)
    for position, value in row.values.items():
        x[position] = value
    return x


def assert_row(row: Row, result: Confidence, at: int, tolerance: float = 1e-6) -> None:
    assert result.token[at].item() == row.token
    for name in Confidence._fields[1:]:
        actual, expected = getattr(result, name)[at].item(), getattr(row, name)
        close = pytest.approx(expected, rel=tolerance, abs=tolerance / 10, nan_ok=True)
        assert actual == close, f"{name} of {row.name}"
