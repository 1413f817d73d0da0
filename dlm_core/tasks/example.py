"""One generated example, and the split that its prompt belongs to."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "heldout"]

HELDOUT_ONE_IN = 20


@dataclass(frozen=True)
class Example:
    """A prompt with one right answer; `task` is its name in `dlm_core.tasks.TASKS`."""

    task: str
    prompt: str
    answer: str


def check_split(split: str) -> None:
    """Raise ValueError unless there is such a split."""
    if split not in get_args(Split):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")


def split_of(text: str) -> Split:
    """The split of a text, by its content alone: 1 in 20 is held out.

    The same text is in the same split whatever drew it, so no text can be in both.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") % HELDOUT_ONE_IN == 0 else "train"
