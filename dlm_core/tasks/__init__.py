"""Generated tasks with one right answer each, for training and for measuring quality."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from random import Random

from . import python_functions
from .arithmetic import add, multiply
from .brackets import close
from .example import Example, Split, check_split, split_of
from .json_pairs import from_json, to_json
from .sorting import sort
from .strings import repeat, replace, reverse
from .tables import lookup, record
from .units import convert

__all__ = [
    "LONG_TASKS",
    "TASKS",
    "Example",
    "are_right",
    "draw",
    "examples",
    "heldout",
    "is_right",
    "split_of",
]

Task = Callable[[Random], Example]

TASKS: dict[str, Task] = {
    "add": add,
    "multiply": multiply,
    "sort": sort,
    "close": close,
    "to_json": to_json,
    "from_json": from_json,
    "convert": convert,
    "lookup": lookup,
    "record": record,
    "reverse": reverse,
    "replace": replace,
    "repeat": repeat,
    "python": python_functions.python,
}
# Half of their answers or more take at least 24 tokens, which is where parallel decoding shows.
LONG_TASKS = ("add", "multiply", "to_json", "record", "python")


def examples(split: Split, seed: int, tasks: Mapping[str, Task] = TASKS) -> Iterator[Example]:
    """Examples of a split without end, the task of each drawn at random, all as likely."""
    check_split(split)
    rng = Random(f"{split} {seed}")
    makers = list(tasks.values())
    while True:
        yield draw(rng.choice(makers), split, rng)


def draw(make: Task, split: Split, rng: Random) -> Example:
    """An example of a task whose prompt is of a split."""
    while split_of((example := make(rng)).prompt) != split:
        pass
    return example


def heldout(n_per_task: int, seed: int) -> list[Example]:
    """Held-out examples with distinct prompts, `n_per_task` of each task in the order of TASKS.

    The fewest distinct held-out prompts that a task has are those of `convert`, about 840; asked
    for more, this raises ValueError.
    """
    if n_per_task < 1:
        raise ValueError(f"n_per_task must be at least 1, got {n_per_task}")
    drawn: list[Example] = []
    for name, make in TASKS.items():
        distinct: dict[str, Example] = {}
        draws = examples("heldout", seed, {name: make})
        for example in islice(draws, 20 * n_per_task):
            distinct[example.prompt] = example
            if len(distinct) == n_per_task:
                break
        else:
            raise ValueError(
                f"n_per_task must be at most about {len(distinct)} for {name!r}, got {n_per_task}"
            )
        drawn += distinct.values()
    return drawn


def are_right(examples: Sequence[Example], texts: Sequence[str]) -> list[bool]:
    """Whether each text answers its example: letter for letter, a Python function by running it.

    The Python functions share one child process, so many are checked faster than one by one.
    """
    right = [text == example.answer for example, text in zip(examples, texts, strict=True)]
    written = [i for i, example in enumerate(examples) if example.task == "python"]
    ran = python_functions.run_right([examples[i] for i in written], [texts[i] for i in written])
    for i, result in zip(written, ran, strict=True):
        right[i] = result
    return right


def is_right(example: Example, text: str) -> bool:
    """Whether a text answers an example; see `are_right`."""
    return are_right([example], [text])[0]
