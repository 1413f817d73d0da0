"""What is advised, in which order, and what is refused."""

from dataclasses import replace

import pytest

from dlm_core import PRESETS
from dlm_roofline.acceptance import PUBLISHED, Setting
from dlm_roofline.advise.machine import FLOOR, MEASURED, SCALED, machine_of
from dlm_roofline.advise.ranking import FRONT_GAIN, QUANTIZATIONS, Advice, advise
from dlm_roofline.forward import DRAFT, LINEAR, VERIFY, Forward
from dlm_roofline.memory import peak_memory
from dlm_roofline.records import BenchRecord

CONFIG, PROFILE = PRESETS["8b"], PUBLISHED["8b"]
PLAIN = ["none"]


def advised(record: BenchRecord | None, **changes) -> list[Advice]:
    machine = changes.pop("machine", None) or machine_of("h200", [record] if record else [])
    given = {"profile": PROFILE, "batches": [1, 8, 64], "contexts": [1024]} | changes
    return advise(CONFIG, machine, **{"objective": "latency"} | given)


def one(found: list[Advice], mode: str, batch: int, context: int = 1024) -> Advice:
    """Of a mode unquantised."""
    (only,) = (
        each
        for each in found
        if (each.setting.mode, each.batch, each.context, each.quantization)
        == (mode, batch, context, "none")
    )
    return only


def test_rates_follow_from_time_and_acceptance(grid_record: BenchRecord) -> None:
    times = {row.forward: row.timing.median for row in grid_record.steps()}
    seconds = sum(times[Forward(kind, 8, 32, 1024, "bfloat16")] for kind in (DRAFT, VERIFY))
    found = advised(grid_record, quantizations=PLAIN)
    linear = one(found, "linear_spec", 8)
    assert linear.tokens_s_user == pytest.approx(2 * 5.99 / seconds)
    assert linear.tokens_s_device == pytest.approx(8 * linear.tokens_s_user)
    assert linear.how_sure == MEASURED
    assert one(found, "quadratic_spec", 8).how_sure == SCALED  # of k 16; k 10 was measured
    assert {each.how_sure for each in advised(None)} == {FLOOR}


@pytest.mark.parametrize(
    "objective, rate", [("latency", "tokens_s_user"), ("throughput", "tokens_s_device")]
)
def test_the_objective_ranks(grid_record: BenchRecord, objective: str, rate: str) -> None:
    found = advised(grid_record, objective=objective)
    rates = [getattr(each, rate) for each in found]
    assert rates == sorted(rates, reverse=True)
    ways = {(each.setting.name, each.quantization, each.batch) for each in found}
    assert len(ways) == len(found) == 4 * len(QUANTIZATIONS) * 3


def test_contexts_stay_apart_in_their_order(grid_record: BenchRecord) -> None:
    found = advised(grid_record, contexts=[4096, 1024], batches=[1], quantizations=PLAIN)
    assert [each.context for each in found] == [4096] * 4 + [1024] * 4


def test_the_front_is_what_nothing_dominates(grid_record: BenchRecord) -> None:
    found = advised(grid_record, objective="throughput")
    front = sorted((each for each in found if each.front), key=lambda each: -each.tokens_s_user)
    assert len(front) > 1
    # What is slower for the user gives the device more, and not by next to nothing.
    for slower, faster in zip(front[1:], front, strict=False):
        assert slower.tokens_s_user < faster.tokens_s_user
        assert slower.tokens_s_device > FRONT_GAIN * faster.tokens_s_device
    for each in found:
        assert each.front or any(
            better.tokens_s_user >= each.tokens_s_user
            and FRONT_GAIN * better.tokens_s_device >= each.tokens_s_device
            for better in front
        )


def test_of_equals_the_least_quantised_comes_first_and_is_the_front(record: BenchRecord) -> None:
    # So many rows that all of it is held by compute, which the bits of weights do not change.
    profile = replace(PROFILE, settings=[Setting("diffusion", 32, 0.9, 2.57, None)])
    bare = replace(record, rows=[])
    found = advised(bare, profile=profile, batches=[64], contexts=[0])
    assert found[0].tokens_s_user == found[1].tokens_s_user
    assert (found[0].quantization, found[0].front, found[1].front) == ("none", True, False)


def test_what_does_not_fit_comes_last_and_the_smallest_first(grid_record: BenchRecord) -> None:
    found = advised(grid_record, contexts=[65536], batches=[1, 64], quantizations=["none", "int4"])
    assert [(each.fits, each.batch) for each in found] == [(True, 1)] * 8 + [(False, 64)] * 8
    assert not any(each.front for each in found[8:])
    sizes = [each.memory_bytes for each in found[8:]]
    assert sizes == sorted(sizes)
    assert [each.quantization for each in found[8:]] == ["int4"] * 4 + ["none"] * 4


def test_memory_is_that_of_the_cycle_and_some_is_left_to_the_device(record: BenchRecord) -> None:
    cycle = Forward(LINEAR, 8, 32, 1024, "bfloat16", "int4", float8_cache=True)
    needed = peak_memory(CONFIG, cycle, 1024 + 32).total
    machine = machine_of("h200", [record])
    for share, fits in ((0.95, False), (0.85, True)):
        small = replace(machine, memory=int(needed / share))
        given = {"machine": small, "batches": [8], "quantizations": ["int4+float8-cache"]}
        linear = [each for each in advised(None, **given) if each.setting.mode == "linear_spec"]
        assert [(each.memory_bytes, each.fits) for each in linear] == [(needed, fits)]


def test_the_bound_is_the_longest_stage_and_what_holds_it(grid_record: BenchRecord) -> None:
    found = advised(grid_record, contexts=[1024, 131072], quantizations=PLAIN)
    for mode, batch, context, bound in (
        ("autoregressive", 1, 1024, "projections and MLP: memory"),
        ("linear_spec", 64, 1024, "projections and MLP: compute"),
        ("autoregressive", 8, 131072, "attention: memory"),
    ):
        assert one(found, mode, batch, context).bound_by == bound


def test_a_host_computes_in_float32(host_record: BenchRecord) -> None:
    machine = machine_of("host", [host_record])
    found = advised(None, machine=machine, batches=[16], quantizations=PLAIN)
    assert one(found, "diffusion", 16).how_sure == MEASURED
    cycle = Forward("denoise", 16, 32, 1024, "float32")
    needed = peak_memory(CONFIG, cycle, 1056, backend="torch").total
    assert one(found, "diffusion", 16).memory_bytes == needed > 24 << 30
    assert not one(found, "diffusion", 16).fits


def test_least_accuracy(grid_record: BenchRecord) -> None:
    found = advised(grid_record, min_accuracy=0.633)
    assert {each.setting.mode for each in found} == {"autoregressive", "quadratic_spec"}
    unknown = replace(PROFILE, settings=[replace(each, accuracy=None) for each in PROFILE.settings])
    assert len(advised(grid_record, profile=unknown)) == 96
    for profile, best in ((PROFILE, "0.6404"), (unknown, "0")):
        with pytest.raises(ValueError, match=rf"min_accuracy is 0\.9; .*'8b' has at most {best}"):
            advised(grid_record, profile=profile, min_accuracy=0.9)


def test_a_block_may_end_where_the_positions_do_but_not_behind(grid_record: BenchRecord) -> None:
    assert len(advised(grid_record, batches=[1], contexts=[262112], quantizations=PLAIN)) == 4
    with pytest.raises(ValueError, match="context is 262113; it must be at most 262112, for the"):
        advised(grid_record, contexts=[1, 262113])


def test_no_float8_cache_where_the_ops_refuse_it() -> None:
    a100, refused = machine_of("a100-80gb", []), {x for x in QUANTIZATIONS if "float8" in x}
    found = advised(None, machine=a100, batches=[1])
    assert {each.quantization for each in found} == set(QUANTIZATIONS) - refused
    with pytest.raises(ValueError, match="quantization is .*, which the ops refuse on NVIDIA A100"):
        advised(None, machine=a100, quantizations=sorted(refused))
