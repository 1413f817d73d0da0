"""Examples of one task, to be checked by a route of their own."""

from collections.abc import Callable
from itertools import islice

import pytest

from dlm_core.tasks import TASKS, Example, examples

DRAWN = 400


@pytest.fixture
def drawn() -> Callable[[str], list[Example]]:
    """The first 400 training examples of a task."""
    return lambda task: list(islice(examples("train", 3, {task: TASKS[task]}), DRAWN))
