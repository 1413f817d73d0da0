"""What all tasks share: splits by content, seeds, distinct held-out prompts."""

from itertools import islice

import pytest

from dlm_core import tasks
from dlm_core.tasks import TASKS, Example, examples, heldout, split_of

DRAWN = 6_000


def test_splits_share_no_prompt() -> None:
    train = {e.prompt for e in islice(examples("train", 0), DRAWN)}
    held = {e.prompt for e in islice(examples("heldout", 0), DRAWN // 5)}
    assert not train & (held | {e.prompt for e in heldout(50, 7)})
    assert {split_of(prompt) for prompt in train} == {"train"}
    assert {split_of(prompt) for prompt in held} == {"heldout"}


def test_one_text_in_twenty_is_held_out() -> None:
    share = sum(split_of(f"text {i}") == "heldout" for i in range(20_000)) / 20_000
    assert abs(share - 0.05) < 0.005
    # The same on every machine and in every process, unlike hash().
    assert [i for i in range(150) if split_of(str(i)) == "heldout"] == [2, 30, 52, 103, 133, 146]


def test_seed_decides_what_is_drawn() -> None:
    first, again, other = (list(islice(examples("train", s), 200)) for s in (0, 0, 1))
    assert first == again != other
    assert heldout(3, 0) == heldout(3, 0) != heldout(3, 1)


def test_every_task_is_as_likely_and_one_prompt_has_one_answer() -> None:
    counts, answers = dict.fromkeys(TASKS, 0), {}
    for example in islice(examples("train", 0), DRAWN):
        counts[example.task] += 1
        assert answers.setdefault(example.prompt, example) == example
    mean = DRAWN / len(TASKS)
    assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values()), counts


def test_heldout_is_so_many_distinct_prompts_of_each_task() -> None:
    drawn = heldout(30, 0)
    assert [e.task for e in drawn] == [name for name in TASKS for _ in range(30)]
    assert len({e.prompt for e in drawn}) == len(drawn)


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="split must be 'train' or 'heldout', got 'test'"):
        next(examples("test", 0))
    with pytest.raises(ValueError, match="n_per_task must be at least 1, got 0"):
        heldout(0, 0)
    few = {"few": lambda rng: Example("few", f"few: {rng.randrange(100)}", "")}
    monkeypatch.setattr(tasks, "TASKS", few)
    with pytest.raises(ValueError, match="n_per_task must be at most about 5 for 'few', got 50"):
        heldout(50, 0)
