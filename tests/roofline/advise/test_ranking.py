"""What is advised, in which order, and what is refused."""

from dataclasses import replace

import pytest
from advised_records import CONFIG, H200, PLAIN, PROFILE, advised

from dlm_roofline.acceptance import (
    AUTOREGRESSIVE,
    DIFFUSION,
    LINEAR_SPEC,
    QUADRATIC_SPEC,
    Setting,
    forwards_of,
)
from dlm_roofline.advise import QUANTIZATIONS, Advice, Machine, Quantization, advise, machine_of
from dlm_roofline.advise.evidence import MEASURED, PREDICTED, Estimate
from dlm_roofline.advise.ranking import FRONT_GAIN, advice_on
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.forward import DRAFT, VERIFY, Forward
from dlm_roofline.memory import peak_memory
from dlm_roofline.records import Record
from dlm_roofline.step_cost import ATTENTION, HEAD
from dlm_roofline.step_time import StageTime


def test_rates_follow_from_time_and_acceptance(grid_record: Record) -> None:
    timed = {row.forward: row.timing.median for row in grid_record.rows if row.kind == "step"}
    forwards = (Forward(DRAFT, 8, 32, 1024, "bfloat16"), Forward(VERIFY, 8, 32, 1024, "bfloat16"))
    (found,) = [
        each
        for each in advised(grid_record, quantizations=PLAIN)
        if (each.setting.mode, each.batch) == (LINEAR_SPEC, 8)
    ]
    assert found.forwards == forwards
    assert found.seconds == pytest.approx(sum(timed[each] for each in forwards))
    assert found.tokens_per_user == pytest.approx(2 * 5.99 / found.seconds)
    assert found.tokens_per_device == pytest.approx(8 * found.tokens_per_user)
    assert found.certainty == MEASURED


@pytest.mark.parametrize(
    "objective, rate", [("latency", "tokens_per_user"), ("throughput", "tokens_per_device")]
)
def test_the_objective_ranks(grid_record: Record, objective: str, rate: str) -> None:
    found = advised(grid_record, objective)
    rates = [getattr(each, rate) for each in found]
    assert rates == sorted(rates, reverse=True)
    assert len(found) == len(PROFILE.settings) * len(QUANTIZATIONS) * 3


def test_contexts_stay_apart_in_their_order(grid_record: Record) -> None:
    found = advised(grid_record, contexts=[4096, 1024], batches=[1], quantizations=PLAIN)
    assert [each.context for each in found] == [4096] * 4 + [1024] * 4


def test_the_front_is_what_nothing_dominates(grid_record: Record) -> None:
    found = advised(grid_record, "throughput")
    front = sorted((each for each in found if each.front), key=lambda each: -each.tokens_per_user)
    assert len(front) > 1
    # What is slower for the user gives the device more, and not by next to nothing.
    for slower, faster in zip(front[1:], front, strict=False):
        assert slower.tokens_per_user < faster.tokens_per_user
        assert slower.tokens_per_device > FRONT_GAIN * faster.tokens_per_device
    for each in found:
        assert each.front or any(
            better.tokens_per_user >= each.tokens_per_user
            and FRONT_GAIN * better.tokens_per_device >= each.tokens_per_device
            for better in front
        )


def test_of_equals_the_least_quantised_comes_first_and_is_the_front(record: Record) -> None:
    # So many rows that all of it is held by compute, which the bits of weights do not change.
    profile = replace(PROFILE, settings=[Setting(DIFFUSION, 32, 0.9, 2.57, None)])
    found = advised(replace(record, rows=[]), profile=profile, batches=[64], contexts=[0])
    assert found[0].tokens_per_user == found[1].tokens_per_user
    assert (found[0].quantization, found[0].front, found[1].front) == (Quantization(), True, False)


def test_what_does_not_fit_is_never_advised(grid_record: Record) -> None:
    found = advised(grid_record, batches=[1, 64], contexts=[65536], quantizations=PLAIN)
    assert [(each.fits, each.batch) for each in found] == [(True, 1)] * 4 + [(False, 64)] * 4
    assert not any(each.front for each in found[4:])
    room = DATASHEETS[H200].memory
    assert all((each.memory.total <= 0.9 * room) == each.fits for each in found)


def test_of_what_does_not_fit_the_smallest_comes_first(grid_record: Record) -> None:
    given = {"batches": [64], "contexts": [65536]}
    found = advised(grid_record, **given, quantizations=[Quantization(), Quantization("int4")])
    sizes = [each.memory.total for each in found]
    assert sizes == sorted(sizes)
    assert [each.quantization.weights for each in found] == ["int4"] * 4 + [None] * 4


def test_some_memory_is_left_to_the_device(grid_record: Record) -> None:
    machine = Machine.of_record(grid_record)

    def advice_with(memory: int) -> Advice:
        given = (replace(machine, memory=memory), [], PROFILE, [1], [1024], "latency")
        found = advise(CONFIG, *given, quantizations=PLAIN)
        (linear,) = [each for each in found if each.setting.mode == LINEAR_SPEC]
        return linear

    needed = advice_with(1 << 40).memory.total
    assert not advice_with(int(needed / 0.95)).fits
    assert advice_with(int(needed / 0.85)).fits


def test_memory_is_of_the_forward_that_needs_most(grid_record: Record) -> None:
    found = advised(grid_record, batches=[8], quantizations=[Quantization("int4", True)])
    for each in found:
        tokens = each.context + each.setting.size
        needed = [peak_memory(CONFIG, forward, tokens).total for forward in each.forwards]
        assert each.memory.total == max(needed)
        assert {forward.weights for forward in each.forwards} == {"int4"}
        assert all(forward.float8_cache for forward in each.forwards)


def test_the_bound_is_the_longest_stage_and_what_holds_it(grid_record: Record) -> None:
    found = advised(grid_record, contexts=[1024, 131072], quantizations=PLAIN)

    def bound(mode: str, batch: int, context: int) -> tuple[str, str]:
        (one,) = [
            each
            for each in found
            if (each.setting.mode, each.batch, each.context) == (mode, batch, context)
        ]
        return one.stage, one.held_by

    assert bound(AUTOREGRESSIVE, 1, 1024) == ("projections and MLP", "memory")
    assert bound(DIFFUSION, 64, 1024) == ("projections and MLP", "compute")
    assert bound(AUTOREGRESSIVE, 8, 131072) == ("attention", "memory")


def test_a_stage_of_two_forwards_is_held_by_what_holds_the_longer(grid_record: Record) -> None:
    class Told:
        """Attention that memory holds in drafts, and compute, for longer, in their verification."""

        def estimate(self, config, forward: Forward) -> Estimate:
            attention = StageTime(3.0, 3.0, "memory")
            if forward.kind == VERIFY:
                attention = StageTime(4.0, 4.0, "compute")
            head = StageTime(3.2, 3.2, "exponentials")
            return Estimate(7.0, {HEAD: head, ATTENTION: attention}, PREDICTED)

    (setting,) = PROFILE.of_mode(LINEAR_SPEC)
    for order in (1, -1):
        forwards = forwards_of(setting, 1, 1024, "bfloat16")[::order]
        found = advice_on(CONFIG, Told(), Machine.of_record(grid_record), setting, forwards)
        assert (found.stage, found.held_by, found.seconds) == (ATTENTION, "compute", 14.0)


def test_least_accuracy(grid_record: Record) -> None:
    found = advised(grid_record, min_accuracy=0.633)
    assert {each.setting.mode for each in found} == {AUTOREGRESSIVE, QUADRATIC_SPEC}
    unknown = replace(PROFILE, settings=[replace(each, accuracy=None) for each in PROFILE.settings])
    for profile, best in ((PROFILE, "0.6404"), (unknown, "states none")):
        with pytest.raises(ValueError, match=rf"min_accuracy is 0\.9; .*'8b', .*{best}"):
            advised(grid_record, profile=profile, min_accuracy=0.9)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "speed"}, "objective is 'speed'; it must be one of latency, throughput"),
        ({"batches": []}, "batches is empty"),
        ({"contexts": []}, "contexts is empty"),
        ({"quantizations": []}, "quantizations is empty"),
        ({"batches": [0]}, "batch is 0; it must be at least 1"),
        ({"contexts": [262113]}, "context is 262113; it must be at most 262112, for the model has"),
    ],
)
def test_arguments_are_checked(grid_record: Record, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        advised(grid_record, **changes)


def test_a_block_may_end_where_the_positions_do(grid_record: Record) -> None:
    found = advised(grid_record, batches=[1], contexts=[262112], quantizations=PLAIN)
    assert len(found) == len(PROFILE.settings)


def test_no_float8_cache_where_the_ops_refuse_it(grid_record: Record) -> None:
    def ranked(machine: Machine, quantizations=QUANTIZATIONS) -> set[Quantization]:
        given = (machine, [], PROFILE, [1], [1024], "latency")
        found = advise(CONFIG, *given, quantizations=quantizations)
        return {each.quantization for each in found}

    machine, _ = machine_of("a100-80gb", [])
    refused = [each for each in QUANTIZATIONS if each.float8_cache]
    assert ranked(machine) == set(QUANTIZATIONS) - set(refused)
    assert Quantization("fp8") in ranked(machine)
    with pytest.raises(ValueError, match="quantizations is none.*, which the ops refuse on NVIDIA"):
        ranked(machine, refused)
    for allowed in (
        replace(machine, backend="torch"),
        machine_of("h200", [])[0],
        Machine.of_record(grid_record),  # whose build of torch could not time float8 products
    ):
        assert ranked(allowed) == set(QUANTIZATIONS)
    unlisted = replace(Machine.of_record(grid_record), name="Some GPU")
    assert ranked(unlisted) == set(QUANTIZATIONS) - set(refused)
    assert ranked(replace(unlisted, kind="cpu", backend="triton")) == set(QUANTIZATIONS)
