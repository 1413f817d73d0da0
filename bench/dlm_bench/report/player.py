"""What the player steps through: runs of the small model, frame by frame.

A frame is what stands after one forward, or after the denoising step that follows it. Diffusion's
frames come from its StepEvents. Those of linear self-speculation are its cycles run again one
forward at a time, since decoding itself reports no drafts; the tokens must be the same.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import dlm_core
from dlm_core import KVCache, Model, StepEvent
from dlm_core.decoding.runner import Runner
from dlm_core.generate_command import label_of, tokenizer_of

# With the one right answer of each.
PROMPTS = {
    "sort: 66 73 45 23 20 13 94 22": "13 20 22 23 45 66 73 94",
    "multiply: 347 * 6": "7*6+0=42, 4*6+4=28, 3*6+2=20: 2082",
    "add: 4416 + 994": "6+4+0=10, 1+9+1=11, 4+9+1=14, 4+0+1=05: 5410",
}
THRESHOLDS = (0.9, 0.5)
MAX_NEW_TOKENS = 64

# What a cell can be.
SEED, MASK, NEW, KEPT = "seed", "mask", "new", "kept"
DRAFT, RIGHT, WRONG, OWN, DROPPED = "draft", "right", "wrong", "own", "dropped"


@dataclass(frozen=True)
class Cell:
    """A position of the block. confidence: the probability its token was chosen with.

    at: the frame's forward that chose it; None where the prefill did, or nothing has yet.
    was: the draft that a verified token replaced, or that is given up.
    """

    text: str
    kind: str
    confidence: float | None = None
    at: int | None = None
    was: str | None = None


@dataclass(frozen=True)
class Frame:
    """block: counted from 1. forwards: so far, without the prefill. tokens: of the answer so far.

    before: the answer's text ahead of the block.
    """

    what: str
    block: int
    forwards: int
    tokens: int
    before: str
    cells: list[Cell]


@dataclass(frozen=True)
class Run:
    """One prompt in one mode. block_name: what its blocks are called, "block" or "cycle"."""

    prompt: str
    mode: str
    block_name: str
    answer: str
    right: bool
    frames: list[Frame]


def runs(folder: Path = dlm_core.SMALL_MODEL) -> list[dict]:
    """Every prompt in every mode, ready for JSON; a second or two on a CPU.

    ValueError, OSError: the small model is not there or cannot be loaded.
    """
    tokenizer = tokenizer_of(folder)
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer.json")
    model = dlm_core.load_model(folder)
    found = []
    for prompt, answer in PROMPTS.items():
        ids = tokenizer.encode(prompt).ids
        made = [_diffusion(model, tokenizer, ids, threshold) for threshold in THRESHOLDS]
        made.append(_linear(model, tokenizer, ids))
        for mode, block_name, tokens, frames in made:
            text = tokenizer.decode(tokens)
            found.append(Run(prompt, mode, block_name, text, text == answer, frames))
    return [asdict(run) for run in found]


Made = tuple[str, str, list[int], list[Frame]]


def _diffusion(model: Model, tokenizer, prompt: list[int], threshold: float) -> Made:
    """Frames of `diffusion`: each block before its first step and after each step."""
    events: list[StepEvent] = []
    made = dlm_core.generate(
        model, prompt, MAX_NEW_TOKENS, "diffusion", threshold=threshold, on_step=events.append
    )
    mask_id, length, total = model.config.mask_token_id, model.config.block_size, len(made.tokens)
    frames: list[Frame] = []
    cells: dict[int, Cell] = {}
    decided: list[int] = []  # tokens of the blocks that are done
    forwards = 0

    def add(what: str, block: int, counted: int) -> None:
        before = tokenizer.decode(decided)
        shown = [cells.get(i, Cell("", MASK)) for i in range(length)]
        frames.append(Frame(what, block + 1, forwards, min(counted, total), before, shown))

    for event in events:
        if event.step == 0:
            if event.block:
                forwards += 1
                seed_from = "A causal forward commits the block before and gives the next seed"
            else:
                seed_from = "The prefill, which is not counted, gives the block's first token"
            # What this step did not commit has stood there from the start.
            decided_now = set(event.committed) | set(event.undecided)
            cells = {
                i: Cell(label_of(token, tokenizer), SEED)
                for i, token in enumerate(event.tokens)
                if i not in decided_now
            }
            n_masks = length - len(cells)
            add(f"{seed_from}; {n_masks} masks are left.", event.block, len(decided) + len(cells))
        forwards += 1
        for i, cell in cells.items():
            if cell.kind == NEW:
                cells[i] = Cell(cell.text, KEPT, cell.confidence, cell.at)
        for i, confidence in zip(event.committed, event.confidences, strict=True):
            text = label_of(event.tokens[i], tokenizer)
            cells[i] = Cell(text, NEW, round(confidence, 4), forwards)
        n, left = len(event.committed), len(event.undecided)
        committed = sum(token != mask_id for token in event.tokens[: total - len(decided)])
        what = f"Step {event.step + 1} commits {_count(n, 'token')}; {_count(left, 'mask')} left."
        add(what, event.block, len(decided) + committed)
        if not event.undecided:
            decided += event.tokens
    _check(frames, made.tokens, decided[:total], made.forwards)
    return f"diffusion, threshold {threshold:g}", "block", made.tokens, frames


@torch.inference_mode()
def _linear(model: Model, tokenizer, prompt: list[int]) -> Made:
    """Frames of `linear_spec`: each cycle ahead of it, after its draft and after its verdict."""
    made = dlm_core.generate(model, prompt, MAX_NEW_TOKENS, "linear_spec")
    runner, length, total = Runner.of(model), model.config.block_size, len(made.tokens)
    capacity = len(prompt) + MAX_NEW_TOKENS + 2 * length
    cache = KVCache(model.config, 1, capacity, device=model.device, dtype=model.dtype)
    hidden = runner.hidden(torch.tensor([prompt]), cache, causal=True)
    cache.advance(len(prompt))
    seed = int(runner.statistics(hidden[:, -1:]).token)
    answer, frames, forwards, cycle = [seed], [], 0, 0

    def label(token: int) -> str:
        return label_of(token, tokenizer)

    def add(what: str, cells: list[Cell], known: int, counted: int) -> None:
        before = tokenizer.decode(answer[:known])
        frames.append(Frame(what, cycle, forwards, min(counted, total), before, cells))

    while len(answer) < total:
        cycle += 1
        known = len(answer) - 1  # the seed is the block's first
        first = Cell(label(seed), SEED)
        masks = [Cell("", MASK)] * (length - 1)
        who = "The verifier's last token" if cycle > 1 else "The prefill's token"
        add(f"{who} is the seed of {length - 1} drafts.", [first, *masks], known, len(answer))

        block = torch.full((1, length), model.config.mask_token_id)
        block[:, 0] = seed
        drafts, sure = _choices(
            runner, runner.hidden(block, cache, causal=False, lora=model.has_draft_lora)[:, 1:]
        )
        forwards += 1
        drafted = [
            Cell(label(token), DRAFT, confidence, forwards)
            for token, confidence in zip(drafts, sure, strict=True)
        ]
        what = f"The draft, a forward in both directions, proposes {length - 1} tokens at once."
        add(what, [first, *drafted], known, len(answer))

        block[0, 1:] = torch.tensor(drafts)
        choices, sure = _choices(runner, runner.hidden(block, cache, causal=True))
        forwards += 1
        n_right = next((i for i, token in enumerate(drafts) if token != choices[i]), len(drafts))
        # The token behind the last draft, if all were right, stands in the next block.
        cells = [first]
        for i, draft in enumerate(drafts):
            text = label(choices[i])
            if i < n_right:
                cells.append(Cell(text, RIGHT, sure[i], forwards))
            elif i == n_right:
                cells.append(Cell(text, OWN, sure[i], forwards, was=label(draft)))
            else:
                cells.append(Cell("", DROPPED, was=label(draft)))
        answer += choices[: n_right + 1]
        what = f"The causal forward keeps {n_right} of {length - 1} drafts"
        what += " and adds its own token." if n_right < length - 1 else " and gives the next seed."
        add(what, cells, known, len(answer))
        cache.advance(n_right + 1)
        seed = answer[-1]
    _check(frames, made.tokens, answer[:total], made.forwards)
    return "linear self-speculation", "cycle", made.tokens, frames


def _choices(runner: Runner, hidden: Tensor) -> tuple[list[int], list[float]]:
    """The likeliest token of each hidden state [1, M, hidden_size], and its probability."""
    found = runner.statistics(hidden)
    return found.token.tolist(), [round(p, 4) for p in found.probability.tolist()]


def _check(
    frames: Sequence[Frame], tokens: list[int], shown: list[int], forwards: dict[str, int]
) -> None:
    """The frames must end where decoding did."""
    counted = sum(n for kind, n in forwards.items() if kind != "prefill")
    if shown != tokens or frames[-1].forwards != counted:
        raise AssertionError(f"frames give {shown} in {frames[-1].forwards}, not {tokens}")


def _count(n: int, name: str) -> str:
    return f"{n} {name}" if n == 1 else f"{n} {name}s"
