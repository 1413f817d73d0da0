"""What the player steps through: runs of the small model, frame by frame.

Diffusion's frames come from its StepEvents, a forward each. Linear self-speculation reports how
many tokens each cycle emitted, so a frame is a whole cycle: drafts that were right, then the
verifier's own token; drafts given up are counted, not named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import dlm_core
from dlm_core import Generation, StepEvent
from dlm_core.generate_command import label_of, tokenizer_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# With the one right answer of each.
PROMPTS = {
    "sort: 66 73 45 23 20 13 94 22": "13 20 22 23 45 66 73 94",
    "multiply: 347 * 6": "7*6+0=42, 4*6+4=28, 3*6+2=20: 2082",
    "add: 4416 + 994": "6+4+0=10, 1+9+1=11, 4+9+1=14, 4+0+1=05: 5410",
}
MODES = {
    "diffusion at threshold 0.9": {"mode": "diffusion", "threshold": 0.9},
    "diffusion at threshold 0.5": {"mode": "diffusion", "threshold": 0.5},
    "linear self-speculation": {"mode": "linear_spec"},
}
MAX_NEW_TOKENS = 64

# What a cell can be, as style.css names it.
SEED, MASK, NEW, KEPT = "seed", "mask", "new", "kept"
RIGHT, OWN, DROPPED = "right", "own", "dropped"


@dataclass(frozen=True)
class Cell:
    """A position of the block. confidence: the probability its token was committed with."""

    text: str
    kind: str
    confidence: float | None = None


@dataclass(frozen=True)
class Frame:
    """What stands after a forward or a cycle. before: the answer's text before the block."""

    what: str
    before: str
    cells: list[Cell]


@dataclass(frozen=True)
class Run:
    """One prompt in one mode. forwards: all but the prefill."""

    prompt: str
    mode: str
    answer: str
    right: bool
    tokens: int
    forwards: int
    frames: list[Frame]


def runs() -> list[Run]:
    """Every prompt in every mode; a second or two on a CPU.

    Raises:
        OSError, ValueError: the small model is not there or can't be loaded.
    """
    folder, found = dlm_core.SMALL_MODEL, []
    tokenizer, model = tokenizer_of(folder), dlm_core.load_model(folder)
    for prompt, answer in PROMPTS.items():
        ids = tokenizer.encode(prompt).ids
        for mode, options in MODES.items():
            events: list[StepEvent] = []
            watch = {"on_step": events.append} if options["mode"] == "diffusion" else {}
            made = dlm_core.generate(model, ids, MAX_NEW_TOKENS, **options, **watch)
            block = model.config.block_size
            frames = steps(events, tokenizer) if watch else cycles(made, block, tokenizer)
            text, n = tokenizer.decode(made.tokens), len(made.tokens)
            forwards = sum(made.forwards.values()) - made.forwards["prefill"]
            found.append(Run(prompt, mode, text, text == answer, n, forwards, frames))
    return found


def steps(events: Sequence[StepEvent], tokenizer: "Tokenizer") -> list[Frame]:
    """Each block before its first denoising step and after each step."""
    frames, decided, confidences = [], list[int](), dict[int, float]()

    def add(what: str, event: StepEvent, masks: Sequence[int], new: Sequence[int]) -> None:
        cells = []
        for i, token in enumerate(event.tokens):
            kind = MASK if i in masks else NEW if i in new else KEPT if i in confidences else SEED
            text = "" if kind == MASK else label_of(token, tokenizer)
            cells.append(Cell(text, kind, confidences.get(i)))
        frames.append(Frame(f"{what}; masks left: {len(masks)}.", tokenizer.decode(decided), cells))

    for forward, event in enumerate(events, start=1):
        forward += event.block  # a causal forward commits each block before the next begins
        if event.step == 0:
            confidences.clear()
            who = f"Forward {forward - 1}, causal," if event.block else "The prefill"
            add(f"{who} gives the first token", event, event.committed + event.undecided, [])
        confidences |= zip(event.committed, event.confidences, strict=True)
        new = event.committed
        add(f"Forward {forward}; tokens committed: {len(new)}", event, event.undecided, new)
        if not event.undecided:
            decided += event.tokens
    return frames


def cycles(made: Generation, block: int, tokenizer: "Tokenizer") -> list[Frame]:
    """The first block before its draft, and each after its verdict."""
    tokens, drafts = made.tokens, block - 1
    seed = Cell(label_of(tokens[0], tokenizer), SEED)
    what = f"The prefill gives the first token, the seed of {drafts} drafts."
    frames = [Frame(what, "", [seed, *[Cell("", MASK)] * drafts])]
    for cycle, (start, end) in enumerate(pairwise(accumulate(made.accepted, initial=1)), start=1):
        right = end - start - 1
        kinds = [SEED, *[RIGHT] * right, OWN]
        shown = zip(tokens[start - 1 : end], kinds, strict=False)  # the answer may end before it
        cells = [Cell(label_of(token, tokenizer), kind) for token, kind in shown][:block]
        cells += [Cell("", DROPPED)] * (block - len(cells))
        what = (
            f"Forward {2 * cycle - 1} drafts {drafts} tokens at once; forward {2 * cycle} finds"
            f" {right} of them right and gives a token of its own."
        )
        frames.append(Frame(what, tokenizer.decode(tokens[: start - 1]), cells))
    return frames
