"""What is decoded by which settings."""

from collections import Counter

import pytest

from dlm_bench.quality.settings import PLAIN, WAYS, headline, quick, standard
from dlm_core import RULES


@pytest.mark.parametrize("has_lora", [False, True])
def test_the_grid_holds_every_mode_rule_and_way_once(has_lora: bool) -> None:
    grid = standard(32, has_lora)
    # Thresholds, five rules and linear at three blocks, steps, quadratic; less the headline.
    loras = 1 + has_lora
    others = 3 * (5 + 5 + loras) + (3 + 4 + 5) + 3 - 1 - loras
    assert Counter(grid.values()) == {168: 2 + loras, 12: others, 31: 3 * 4}
    assert len({each.name for each in grid}) == len(grid)
    suited = {name for name, rule in RULES.items() if not rule.logit_shift and not rule.renoise}
    assert {each.rule for each in grid} - {None} == suited - {"nemotron"}
    assert any(each.lora for each in grid) == has_lora
    # AR comes first in each way, for others are compared with it.
    first = {each.way: each.mode for each in reversed(grid)}
    assert first == dict.fromkeys([PLAIN, *WAYS], "autoregressive")


def test_a_quick_run_has_one_setting_of_each_kind() -> None:
    grid = quick(8, True)
    kinds = [(each.mode, each.lora, each.way, *each.options) for each in grid]
    assert len(set(kinds)) == len(kinds) == 4 + 3 + 3 * 4
    assert {each for each, n in grid.items() if n == 2} == set(headline(8, True).values())
