"""What is advised, how sure that is, and how good on what the adviser has not seen."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlm_core import PRESETS, cli
from dlm_roofline.acceptance import (
    AUTOREGRESSIVE,
    DIFFUSION,
    LINEAR_SPEC,
    PUBLISHED,
    QUADRATIC_SPEC,
    Profile,
    Setting,
    forwards_of,
    load_profile,
    tokens_per_cycle,
)
from dlm_roofline.advise import (
    OBJECTIVES,
    QUANTIZATIONS,
    Advice,
    Machine,
    Quantization,
    advise,
    machine_of,
    withheld_score,
)
from dlm_roofline.advise.evidence import (
    DATASHEET,
    INTERPOLATED,
    MEASURED,
    PREDICTED,
    SCALED,
    Estimate,
    Evidence,
    measured_in,
)
from dlm_roofline.advise.ranking import advice_on
from dlm_roofline.datasheets import DATASHEETS
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, STEP_NAMES, VERIFY, Forward
from dlm_roofline.memory import peak_memory
from dlm_roofline.records import RESULTS, Device, Record, Row, load, save
from dlm_roofline.step_cost import ATTENTION, HEAD, step_cost, total
from dlm_roofline.step_time import StageTime, step_times

CONFIG, PROFILE = PRESETS["8b"], PUBLISHED["8b"]
H200 = "NVIDIA H200"
PLAIN = [Quantization()]

# Of the sizes that the made-up record holds, k 10 too.
MEASURED_SETTINGS = replace(
    PROFILE,
    settings=[
        replace(each, size=10) if each.mode == QUADRATIC_SPEC else each for each in PROFILE.settings
    ],
)


def slowed(record: Record, factor: Callable[[Forward], float]) -> Record:
    """The record with the times of each forward, and of its stages, taken times a factor."""

    def slow(row: Row) -> Row:
        by, timing = factor(row.forward), row.timing
        scaled = {name: by * getattr(timing, name) for name in ("median", "low", "high")}
        return replace(row, timing=replace(timing, **scaled))

    return replace(record, rows=[slow(row) for row in record.rows])


def on_host(record: Record, pace: Callable[[Forward], float]) -> Record:
    """The record's whole forwards as a shared host takes them, each at a pace of its own."""

    def timed(row: Row) -> Row:
        forward = replace(row.forward, dtype="float32")
        by = pace(forward)
        scaled = {name: by * getattr(row.timing, name) for name in ("median", "low", "high")}
        timing = replace(row.timing, **scaled, graph=False, pace=by)
        return replace(row, forward=forward, dtype="float32", timing=timing, peers=[])

    return replace(
        record,
        backend="torch",
        device=Device("cpu", "AMD EPYC", {}),
        ceilings=replace(record.ceilings, exps=None, l2=None, graph_node=None),
        rows=[timed(row) for row in record.rows if row.kind == "step"],
    )


def with_step(record: Record, forward: Forward, seconds: float) -> Record:
    """The record with one more whole forward."""
    timing = replace(record.rows[0].timing, median=seconds, low=seconds, high=seconds)
    cost = total(step_cost(CONFIG, forward))
    (model,) = record.models
    row = Row.of_stage(STEP_NAMES[forward.kind], model, forward, cost, timing)
    return replace(record, rows=[*record.rows, row])


def varying(forward: Forward) -> float:
    """A slowdown such as devices have: by kind, and worse for small batches and long contexts."""
    by_kind = {"decode": 1.6, "denoise": 1.0, "draft": 1.0, "verify": 1.15, "quadratic": 1.9}
    by_batch = 1 + 0.8 / math.sqrt(forward.batch)
    return by_kind[forward.kind] * by_batch * (1 + 0.1 * math.log2(1 + forward.context / 1024))


def advised(record: Record, objective: str = "latency", **changes) -> list[Advice]:
    given = {"profile": PROFILE, "batches": [1, 8, 64], "contexts": [1024]} | changes
    return advise(CONFIG, Machine.of_record(record), [record], objective=objective, **given)


def predicted(record: Record, forward: Forward) -> float:
    stages = step_times(CONFIG, forward, record.ceilings, record.backend)
    return sum(each.seconds for each in stages.values())


# --- the ranking


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
    rates = {id(each): (each.tokens_per_user, each.tokens_per_device) for each in found}
    front = {rates[id(each)] for each in found if each.front}
    dominated = [
        each for each in rates.values()
        if any(a[0] >= each[0] and a[1] >= each[1] and a != each for a in rates.values())
    ]  # fmt: skip
    assert front == set(rates.values()) - set(dominated)
    assert 1 < len(front) == sum(each.front for each in found)


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


# --- how sure it is, and what a measured forward says of others


def estimate(record: Record, forward: Forward, config=CONFIG):
    return Evidence(Machine.of_record(record), measured_in([record])).estimate(config, forward)


@pytest.mark.parametrize(
    "forward, certainty",
    [
        (Forward(DENOISE, 8, 32, 4096, "bfloat16"), MEASURED),
        (Forward(DENOISE, 12, 32, 4096, "bfloat16"), INTERPOLATED),
        (Forward(DENOISE, 8, 32, 2000, "bfloat16"), INTERPOLATED),
        (Forward(DENOISE, 8, 32, 500, "bfloat16"), SCALED),
        (Forward(DENOISE, 65, 32, 4096, "bfloat16"), SCALED),
        (Forward(DENOISE, 8, 16, 4096, "bfloat16"), SCALED),
        (Forward(DRAFT, 8, 32, 4096, "bfloat16"), SCALED),
        (Forward(DENOISE, 8, 32, 4096, "bfloat16", weights="int8"), SCALED),
        (Forward(DENOISE, 8, 32, 4096, "bfloat16", float8_cache=True), SCALED),
        (Forward(DENOISE, 8, 32, 4096, "float16"), SCALED),
    ],
)
def test_certainty(grid_record: Record, forward: Forward, certainty: str) -> None:
    assert estimate(grid_record, forward).certainty == certainty


def test_another_model_is_never_measured(grid_record: Record) -> None:
    found = estimate(grid_record, Forward(DENOISE, 8, 32, 4096, "bfloat16"), PRESETS["14b"])
    assert found.certainty == SCALED


@pytest.mark.parametrize(
    "blocks, batch, certainty",
    [
        ({16: (1, 64), 32: (1, 64)}, 8, INTERPOLATED),
        ({8: (1, 64), 32: (1, 64)}, 8, INTERPOLATED),
        ({16: (8,), 32: (1, 64)}, 8, INTERPOLATED),
        ({16: (1,), 32: (1, 64)}, 8, SCALED),
        ({16: (1, 4), 32: (1, 64)}, 8, SCALED),
        ({8: (1, 4), 32: (1, 64)}, 8, SCALED),
        ({8: (1,), 32: (64,)}, 8, SCALED),
        ({32: (1, 64)}, 8, SCALED),
    ],
)
def test_between_is_at_the_same_block(
    record: Record, blocks: dict, batch: int, certainty: str
) -> None:
    bare = replace(record, rows=[row for row in record.rows[:1] if row.kind == "stage"])
    for block, batches in blocks.items():
        for each in batches:
            for context in (512, 2048):
                bare = with_step(bare, Forward(DENOISE, each, block, context, "bfloat16"), 0.01)
    assert estimate(bare, Forward(DENOISE, batch, 16, 1024, "bfloat16")).certainty == certainty


def test_measured_is_as_it_was_and_factors_are_at_one_pace(grid_record: Record) -> None:
    """All took twice as long while the host was at half its pace."""
    steady, shared = (on_host(grid_record, lambda _, by=by: by) for by in (1.0, 2.0))
    measured, between = (Forward(DENOISE, batch, 32, 4096, "float32") for batch in (8, 12))
    timed = {row.forward: row.timing.median for row in shared.rows}
    assert estimate(shared, measured).seconds == timed[measured]
    expected = estimate(steady, between).seconds
    assert estimate(shared, between).seconds == pytest.approx(expected, rel=1e-6)


def test_a_cycle_is_as_sure_as_its_least_sure_forward(grid_record: Record) -> None:
    rows = [
        row for row in grid_record.rows if row.forward != Forward(VERIFY, 8, 32, 1024, "bfloat16")
    ]
    found = advised(replace(grid_record, rows=rows), batches=[8], quantizations=PLAIN)
    by_mode = {each.setting.mode: each.certainty for each in found}
    assert by_mode[LINEAR_SPEC] == INTERPOLATED
    assert by_mode[DIFFUSION] == MEASURED


def test_a_measured_time_is_taken_as_it_is_and_the_newest_first(grid_record: Record) -> None:
    forward = Forward(DENOISE, 8, 32, 4096, "bfloat16")
    timed = {row.forward: row.timing.median for row in grid_record.rows if row.kind == "step"}
    assert estimate(grid_record, forward).seconds == timed[forward]
    newer = replace(slowed(grid_record, lambda _: 3.0), date="2026-02-01T00:00:00Z")
    machine, records = machine_of(H200, [grid_record, newer])
    found = Evidence(machine, measured_in(records)).estimate(CONFIG, forward)
    assert found.seconds == pytest.approx(3 * timed[forward])


def test_factors_between_measured_forwards_are_interpolated(grid_record: Record) -> None:
    """The factor grows by a fixed share for each doubling of batch and of context."""

    def factor(forward: Forward) -> float:
        return 1.2 * forward.batch**0.2 * (forward.context + 32) ** 0.1

    timed = {row.forward: row.timing.median for row in grid_record.rows if row.kind == "step"}
    steps = [
        row
        for row in grid_record.rows
        if row.kind == "step" and row.forward.batch in (1, 4, 64) and row.forward.context != 4096
    ]
    bare = replace(grid_record, rows=steps)
    record = slowed(bare, lambda each: factor(each) * predicted(bare, each) / timed[each])
    for batch, context in ((2, 1024), (16, 16384), (8, 4096)):
        forward = Forward(DENOISE, batch, 32, context, "bfloat16")
        found = estimate(record, forward)
        assert found.certainty == INTERPOLATED
        expected = factor(forward) * predicted(record, forward)
        assert found.seconds == pytest.approx(expected, rel=0.05)


def test_kinds_that_nobody_timed_are_not_called_by_their_floors(grid_record: Record) -> None:
    """Drafts in int8 take what drafts take and int8 takes."""
    slow = slowed(grid_record, lambda forward: 3.0 if forward.kind == DRAFT else 1.5)
    for kind, block in ((DENOISE, 32), (DECODE, 1)):
        for batch in (1, 8):
            forward = Forward(kind, batch, block, 1024, "bfloat16", weights="int8")
            slow = with_step(slow, forward, 4 * predicted(slow, forward))
    plain = Forward(DRAFT, 4, 32, 1024, "bfloat16")
    factors = [
        estimate(slow, forward).seconds / predicted(slow, forward)
        for forward in (plain, replace(plain, weights="int8"), replace(plain, weights="fp8"))
    ]
    assert factors[1] > 1.5 * factors[0] > 4.5
    assert factors[2] > 0.6 * factors[0]


def test_beyond_what_was_measured_the_nearest_factor_holds(grid_record: Record) -> None:
    steps = [row for row in grid_record.rows if row.kind == "step" and row.forward.kind == DENOISE]
    record = slowed(replace(grid_record, rows=steps), lambda forward: 2 - forward.batch / 64)
    nearest, beyond = (Forward(DENOISE, b, 32, 1024, "bfloat16") for b in (64, 128))
    last, further = (
        estimate(record, forward).seconds / predicted(record, forward)
        for forward in (nearest, beyond)
    )
    assert further == pytest.approx(last, rel=0.05)


def test_without_rows_ceilings_predict_and_without_a_record_the_datasheet(record: Record) -> None:
    forward = Forward(DENOISE, 8, 32, 1024, "bfloat16")
    found = estimate(replace(record, rows=[]), forward)
    assert (found.certainty, found.seconds) == (PREDICTED, predicted(record, forward))
    machine, records = machine_of("h200", [])
    assert (machine.name, records) == (H200, [])
    found = Evidence(machine, []).estimate(CONFIG, forward)
    sheet = step_times(CONFIG, forward, DATASHEETS[H200].ceilings(), "triton")
    assert found.certainty == DATASHEET
    assert found.seconds == sum(each.seconds for each in sheet.values())


# --- which device, and which records tell of it


def of_device(record: Record, date: str, *, threads: int | None = None, **changes) -> Record:
    """The record with another date, and of a CPU with these threads."""
    if threads:
        details = {"threads": str(threads), "memory": "24 GiB"}
        ceilings = replace(record.ceilings, exps=None, l2=None, graph_node=None)
        changes |= {"device": Device("cpu", "AMD EPYC", details), "ceilings": ceilings, "rows": []}
    return replace(record, date=date, **changes)


def test_the_host_is_the_newest_cpu(record: Record) -> None:
    old = of_device(record, "2026-01-01", threads=2)
    other = of_device(record, "2026-01-02", threads=1)
    new = of_device(record, "2026-01-03", threads=2)
    machine, records = machine_of("host", [old, new, other, record])
    assert records == [new, old]
    assert (machine.kind, machine.name, machine.memory) == ("cpu", "AMD EPYC", 24 << 30)
    assert (machine.dtype_of(CONFIG), Machine.of_record(record).dtype_of(CONFIG)) == (
        "float32", "bfloat16",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["h200", H200])
def test_a_gpu_by_either_name(record: Record, name: str) -> None:
    on_torch = replace(record, date="2026-01-01", backend="torch")
    machine, records = machine_of(name, [on_torch, record])
    assert records == [record]
    assert (machine.measured, machine.memory) == (True, DATASHEETS[H200].memory)
    assert machine.ceilings == record.ceilings


def test_a_gpu_without_a_datasheet_is_known_by_its_record(record: Record) -> None:
    device = Device("cuda", "Some GPU", {"memory": "16 GiB"})
    machine, records = machine_of("Some GPU", [replace(record, device=device)])
    assert (machine.memory, len(records)) == (16 << 30, 1)
    nameless = replace(record, device=replace(device, details={}))
    machine, _ = machine_of("Some GPU", [nameless])
    assert machine.memory is None
    found = advise(CONFIG, machine, [nameless], PROFILE, [64], [65536], "latency")
    assert all(each.fits for each in found)


def test_unknown_devices(record: Record) -> None:
    with pytest.raises(ValueError, match="'host' needs a record of a CPU"):
        machine_of("host", [record])
    with pytest.raises(ValueError, match="nonesuch"):
        machine_of("nonesuch", [record])


# --- cells withheld


@pytest.mark.parametrize("factor", [lambda _: 1.0, varying], ids=["uniform", "varying"])
def test_advice_on_withheld_cells_is_good(grid_record: Record, factor: Callable) -> None:
    found = withheld_score(slowed(grid_record, factor), MEASURED_SETTINGS)
    assert all(0 <= each.regret <= 0.1 for each in found)
    for objective in OBJECTIVES:
        judged = [each for each in found if each.objective == objective]
        assert len({(each.batch, each.context) for each in judged}) == len(judged) == 7 * 4
    for each in found:
        advice = each.advised.advice
        here = (advice.batch, advice.context) == (each.batch, each.context)
        assert here or each.objective == "throughput"
        assert (advice.certainty == MEASURED) != here


def test_the_bare_model_does_worse_where_kinds_are_not_alike(grid_record: Record) -> None:
    slow = slowed(grid_record, lambda forward: 8.0 if forward.kind == VERIFY else 1.0)
    found = [each for each in withheld_score(slow, MEASURED_SETTINGS) if each.batch == 1]
    assert max(each.regret for each in found) <= 0.1 < max(each.bare_regret for each in found)


def test_throughput_is_judged_over_the_batches_of_a_context(grid_record: Record) -> None:
    """Batch 16 is best by far, which nobody knows who was not shown it."""
    strange = (16, 4096)
    odd = slowed(grid_record, lambda each: 0.1 if (each.batch, each.context) == strange else 1.0)
    judged = [
        each
        for each in withheld_score(odd, MEASURED_SETTINGS)
        if (each.objective, each.context) == ("throughput", 4096)
    ]
    assert [each.batch for each in judged] == [1, 2, 4, 8, 16, 32, 64]
    timed = {row.forward: row.timing.median for row in odd.rows if row.kind == "step"}
    for each in judged:
        best = each.best.advice
        assert best.batch == 16
        seconds = sum(timed[forward] for forward in best.forwards)
        assert each.best.rate == pytest.approx(16 * tokens_per_cycle(best.setting) / seconds)
        assert (each.regret > 0.1) == (each.batch == 16)


def test_settings_that_run_the_same_forwards_count_once(record: Record) -> None:
    (slower,) = PROFILE.of_mode(DIFFUSION)
    faster = replace(slower, threshold=0.5, tokens_per_forward=5.0)
    for settings in ([slower, faster], [faster, slower]):
        found = withheld_score(record, replace(PROFILE, settings=settings))
        assert {each.objective for each in found} == {"throughput"}
        assert {each.best.advice.setting for each in found} == {faster}
    steps = [row for row in record.rows if row.forward.batch < 4]
    assert not withheld_score(replace(record, rows=steps), replace(PROFILE, settings=settings))


def test_a_score_is_of_times_at_one_pace(grid_record: Record) -> None:
    """Advice that sees and is judged by times at one pace does not depend on it."""
    by_batch = {1: 1.0, 2: 3.0, 4: 0.5, 8: 1.0, 16: 2.0, 32: 4.0, 64: 1.5}
    steady = on_host(grid_record, lambda _: 1.0)
    shared = on_host(grid_record, lambda forward: by_batch[forward.batch])
    expected = withheld_score(steady, MEASURED_SETTINGS)
    found = withheld_score(shared, MEASURED_SETTINGS)
    assert len(found) == 2 * 7 * 4
    assert [each.best.rate for each in found] == pytest.approx(
        [each.best.rate for each in expected]
    )
    assert [each.regret for each in found] == pytest.approx(
        [each.regret for each in expected], abs=1e-6
    )


def test_a_withheld_cell_is_not_seen(grid_record: Record) -> None:
    """What nothing but the cell itself could tell costs the adviser dearly there."""
    strange = Forward(VERIFY, 8, 32, 1024, "bfloat16")
    record = slowed(grid_record, lambda forward: 20.0 if forward == strange else 1.0)
    (there,) = [
        each
        for each in withheld_score(record, MEASURED_SETTINGS)
        if (each.objective, each.batch, each.context) == ("latency", 8, 1024)
    ]
    assert there.advised.advice.forwards[-1] == strange
    assert there.best.advice.setting.mode != LINEAR_SPEC
    assert there.regret > 0.5
    timed = {row.forward: row.timing.median for row in record.rows if row.kind == "step"}
    for advice, rate in (there.advised, there.best):
        seconds = sum(timed[each] for each in advice.forwards)
        assert rate == pytest.approx(tokens_per_cycle(advice.setting) / seconds)


def test_what_met_another_state_of_the_host_is_no_evidence(grid_record: Record) -> None:
    host = on_host(grid_record, lambda forward: 1.0)
    known = measured_in([host])
    rows = [
        replace(row, timing=replace(row.timing, steady=row.forward != known[0].forward))
        for row in host.rows
    ]
    left = measured_in([replace(host, rows=rows)])
    assert [each.forward for each in left] == [each.forward for each in known[1:]]


def committed() -> list[Path]:
    return [
        path
        for path in sorted(RESULTS.glob("*-????????t??????-*.json"))
        if len({row.forward.kind for row in load(path).rows if row.kind == "step"}) > 2
    ]


def test_advice_on_recorded_devices_is_good() -> None:
    paths = committed()
    if not paths:
        pytest.skip(f"{RESULTS} holds no record with several kinds of forwards")
    profile = load_profile(RESULTS / "quality" / "acceptance.json")
    for path in paths:
        found = withheld_score(load(path), profile)
        assert {each.objective for each in found} == set(OBJECTIVES), path
        for each in found:
            assert each.regret <= 0.1, (path, each)


# --- the command


@pytest.fixture
def saved(grid_record: Record, tmp_path: Path) -> Path:
    return save(grid_record, tmp_path)


def run(*arguments: object) -> int:
    return cli.main(["roofline", "advise", *map(str, arguments)])


def closing(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_prints_ranked_tables(
    saved: Path, grid_record: Record, capsys: pytest.CaptureFixture
) -> None:
    given = ["--model", "8b", "--gpu", "h200", "--records", saved, "--context", "1k,64k"]
    assert run(*given, "--batch", "1,64", "--quantization", "none,int4") == 0
    printed = capsys.readouterr().out
    assert saved.name in printed.replace("\n", "")
    for text in (
        "1,024 tokens of context",
        "65,536 tokens of context",
        "★",
        "does not fit",
        "k 16",
    ):
        assert text in printed
    last = json.loads(printed.splitlines()[-1])
    expected = advised(
        grid_record, batches=[1, 64], contexts=[1024, 65536],
        quantizations=[Quantization(), Quantization("int4")],
    )  # fmt: skip
    best = {each.context: each for each in reversed(expected)}
    assert [each["context"] for each in last["advised"]] == [1024, 65536]
    for each in last["advised"]:
        one = best[each["context"]]
        assert (each["mode"], each["batch"]) == (one.setting.mode, one.batch)
        assert each["tokens_s_user"] == pytest.approx(one.tokens_per_user, abs=1e-3)


def test_the_json_line_alone_holds_the_ranking(saved: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["--model", "8b", "--gpu", "h200", "--records", saved, "--context", "64k", "--json"]
    assert run(*given, "--top", "2") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    ranked = json.loads(out)["ranked"]
    assert ranked[0] == json.loads(out)["advised"][0]
    assert [each["rank"] for each in ranked[:2]] == [1, 2]
    assert [each["fits"] for each in ranked[-2:]] == [False, False]
    beyond = [each["front"] for each in ranked[2:] if each["fits"]]
    assert beyond and all(beyond)


def test_models_by_every_name(
    saved: Path, grid_record: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    rates = set()
    for name in ("8b", folder, *grid_record.models):
        assert run("--model", name, "--gpu", "h200", "--records", saved, "--json") == 0
        rates.add(closing(capsys)["advised"][0]["tokens_s_user"])
    assert len(rates) == 1


def test_the_small_model_with_a_profile_of_its_own(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "profile.json"
    profile = Profile(1, "small", "made up", [Setting(DIFFUSION, 16, 0.9, 5.0, 0.9)])
    file.write_text(json.dumps(profile, default=vars))
    given = ["--model", "small", "--gpu", "h200", "--records", saved, "--acceptance", file]
    assert run(*given, "--context", "512", "--json") == 0
    (best,) = closing(capsys)["advised"]
    assert (best["mode"], best["size"], best["accuracy"]) == (DIFFUSION, 16, 0.9)


def test_least_accuracy_rules_out_quantising_unless_asked_for(
    saved: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["--model", "8b", "--gpu", "h200", "--records", saved, "--json", "--top", 100]
    seen = []
    for more in ([], ["--min-accuracy", 0.6], ["--min-accuracy", 0.6, "--quantization", "int8"]):
        assert run(*given, *more) == 0
        seen.append({each["quantization"] for each in closing(capsys)["ranked"]})
    assert len(seen[0]) == len(QUANTIZATIONS)
    assert seen[1:] == [{"none"}, {"int8"}]


def test_the_command_scores_itself(saved: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(MEASURED_SETTINGS, default=vars))
    assert run("--score", saved, "--acceptance", file) == 0
    printed = capsys.readouterr().out
    assert "regret of" in printed and "bare model" in printed and "at one pace" in printed
    last = json.loads(printed.splitlines()[-1])
    for objective in OBJECTIVES:
        score = last[objective]
        assert (score["cells"], score["worst_regret"]) == (28, pytest.approx(0.0, abs=0.01))
        assert score["worst_regret_bare_model"] >= 0


@pytest.mark.parametrize(
    "more",
    ["--model 8b", "--gpu h200", "--batch 1", "--context 1k", "--quantization int4", "--top 3"],
)
def test_a_score_takes_all_else_from_its_record(saved: Path, more: str, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        run("--score", saved, *more.split())
    assert error.value.code == 2
    assert f"argument {more.split()[0]}: must be left out with --score" in capsys.readouterr().err


WHOLE = {"--model": "8b", "--gpu": "h200"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"--model": None}, "argument --model: is missing"),
        ({"--gpu": None}, "argument --gpu: is missing"),
        ({"--model": "9b"}, "argument --model: '9b' is no folder with a config.json; it must be"),
        ({"--gpu": "h2000"}, "argument --gpu: "),
        ({"--gpu": "host"}, "argument --gpu: 'host' needs a record of a CPU"),
        ({"--model": "small"}, "argument --acceptance: is missing; there are published figures for"
         " 3b, 8b, 14b alone"),
        ({"--batch": "0"}, "argument --batch: '0'; it must be a whole number of at least 1"),
        ({"--batch": "1,,8"}, "argument --batch: ''; it must be a whole number"),
        ({"--context": "1x"}, "argument --context: '1x'; it must be a number of tokens"),
        ({"--context": "k"}, "argument --context: 'k'; it must be a number of tokens"),
        ({"--context": "256k"}, "context is 262144; it must be at most 262112, for the model"),
        ({"--objective": "speed"}, "argument --objective: invalid choice: 'speed'"),
        ({"--min-accuracy": "2"}, "argument --min-accuracy: '2'; it must be a share, 0 to 1"),
        ({"--min-accuracy": "high"}, "argument --min-accuracy: 'high'; it must be a share"),
        ({"--min-accuracy": "0.7"}, "min_accuracy is 0.7; it must be at most the best of profile"),
        ({"--quantization": "int3"}, "argument --quantization: 'int3'; it must be one of none"),
        ({"--acceptance": "no.json"}, "no.json: No such file"),
    ],
)  # fmt: skip
def test_a_users_error_is_one_line(
    saved: Path, changes: dict, message: str, capsys: pytest.CaptureFixture
) -> None:
    given = [text for pair in (WHOLE | changes).items() if pair[1] is not None for text in pair]
    with pytest.raises(SystemExit) as error:
        run(*given, "--records", saved)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"dlm roofline advise: error: {message}")
    assert said.count("\n") == 1


def test_records_of_two_devices_are_an_error(
    saved: Path, grid_record: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    b200 = Device("cuda", "NVIDIA B200", {})
    alone = ("record.device.name is 'NVIDIA B200'", "'NVIDIA H200' by --gpu")
    for name, change, first, said in (
        ("name", {"device": b200}, saved, ("record.device.name is 'NVIDIA B200'", f"in {saved};")),
        ("backend", {"backend": "torch"}, saved, ("record.backend is 'torch'", "and 'triton' in")),
        ("alone", {"device": b200}, None, alone),
    ):
        other = save(replace(grid_record, date="2026-01-01", **change), tmp_path / name)
        with pytest.raises(SystemExit):
            run("--model", "8b", "--gpu", "h200", "--records", *filter(None, (first, other)))
        printed = capsys.readouterr().err
        assert f"in {other}" in printed
        assert all(text in printed for text in said), printed


def test_records_of_other_threads_are_an_error(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = [
        save(of_device(record, f"2026-01-0{threads}", threads=threads), tmp_path)
        for threads in (1, 2)
    ]
    with pytest.raises(SystemExit):
        run("--model", "8b", "--gpu", "host", "--records", *paths)
    said = f"record.device.details.threads is '1' in {paths[0]} and '2' in {paths[1]};"
    assert said in capsys.readouterr().err


def test_a_record_without_cells_to_compare_is_an_error(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    steps = [row for row in record.rows if row.forward.batch < 4]
    with pytest.raises(SystemExit):
        run("--score", save(replace(record, rows=steps), tmp_path))
    assert "holds no batch and context at which two settings" in capsys.readouterr().err
