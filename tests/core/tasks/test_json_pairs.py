"""to_json and from_json: read with json.loads."""

import json
from collections.abc import Callable

import pytest

from dlm_core.tasks import Example


@pytest.mark.parametrize("task", ["to_json", "from_json"])
def test_text_and_json_hold_the_same_pairs(
    task: str, drawn: Callable[[str], list[Example]]
) -> None:
    counts, kinds = set(), set()
    for example in drawn(task):
        given = example.prompt.removeprefix(task.replace("_", " ") + ": ")
        text, encoded = (given, example.answer) if task == "to_json" else (example.answer, given)
        pairs = json.loads(encoded)
        assert text == "; ".join(f"{key}={value}" for key, value in pairs.items())
        assert json.dumps(pairs) == encoded
        counts.add(len(pairs))
        kinds.update(map(type, pairs.values()))
        assert all(10 <= value <= 99 for value in pairs.values() if isinstance(value, int))
        assert not any(str(value).isdigit() for value in pairs.values() if isinstance(value, str))
    assert counts == {2, 3, 4, 5, 6}
    assert kinds == {int, str}
