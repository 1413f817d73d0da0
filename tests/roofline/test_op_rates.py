"""Rates from calls, and the work that they are applied to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_core import PRESETS
from dlm_kernels import torch_backend
from dlm_roofline import step_work
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, KINDS, QUADRATIC, Forward
from dlm_roofline.op_rates import Idle, OpRate, Timed, idle_of, middle, op_rate
from dlm_roofline.step_cost import (
    ALL_REDUCE,
    ATTENTION,
    EMBEDDING,
    HEAD,
    PROJECTIONS,
    REMASK,
    step_cost,
)

rates = st.floats(1e6, 1e15)


@given(bandwidth=rates, flops=rates, overhead=st.floats(1e-7, 1e-3))
def test_a_host_op_whose_times_add_up_is_found_again(bandwidth, flops, overhead) -> None:
    def timed(n_bytes: float, work: float) -> Timed:
        return Timed(n_bytes, work, overhead + n_bytes / bandwidth + work / flops)

    # Calls whose bytes and FLOPs take about as long as each other, so that neither is lost.
    idle, calls = Idle(0.0, overhead), (timed(bandwidth, 0.1 * flops), timed(bandwidth, 3 * flops))
    found = op_rate("torch", idle, *calls)
    assert found.overhead == overhead
    assert found.bandwidth == pytest.approx(bandwidth, rel=1e-6)
    assert found.flops == pytest.approx(flops, rel=1e-6)
    again = overhead + found.seconds(7 * bandwidth, 5 * flops, "torch")
    assert again == pytest.approx(timed(7 * bandwidth, 5 * flops).seconds)


def test_on_triton_the_slower_of_bytes_and_flops_counts() -> None:
    found = op_rate("triton", Idle(0.0, 1.0), Timed(10.0, 1.0, 3.0), Timed(10.0, 400.0, 9.0))
    assert found == OpRate(1.0, bandwidth=5.0, flops=50.0)
    assert found.seconds(10.0, 50.0, "triton") == 2.0
    assert found.seconds(10.0, 200.0, "triton") == 4.0
    assert found.seconds(10.0, 200.0, "torch") == 6.0


@pytest.mark.parametrize(
    ("streaming", "multiplying", "expected"),
    [
        # A call that multiplies more and takes no longer: bytes hold both.
        ((10.0, 1.0, 3.0), (10.0, 400.0, 2.9), OpRate(1.0, 5.0, None)),
        # Reading takes less than nothing by the two equations: products hold both.
        ((10.0, 100.0, 2.0), (10.0, 200.0, 5.0), OpRate(1.0, None, 50.0)),
    ],
    ids=["no FLOPs", "no bytes"],
)
def test_noise_gives_no_negative_rate(streaming, multiplying, expected) -> None:
    calls = Timed(*streaming), Timed(*multiplying)
    assert op_rate("torch", Idle(0.0, 1.0), *calls) == expected


def test_a_call_no_slower_than_an_idle_one_has_no_rate() -> None:
    assert op_rate("torch", Idle(0.0, 1.0), Timed(10.0, 0.0, 0.9)) == OpRate(1.0, None, None)


@given(first=st.floats(0, 1e-2), overhead=st.floats(1e-6, 1e-3))
def test_what_the_first_call_takes_is_told_from_what_each_does(first, overhead) -> None:
    found = idle_of(6, first + 6 * overhead, 30, first + 30 * overhead)
    assert found.overhead == pytest.approx(overhead, rel=1e-6)
    assert found.first == pytest.approx(first, abs=1e-8)


@pytest.mark.parametrize(
    ("few", "many"),
    [(6.0, 5.0), (6.0, 6.0), (6.0, 36.0)],
    ids=["many take less", "as long", "each takes longer than one of few"],
)
def test_noise_gives_no_negative_part(few, many) -> None:
    found = idle_of(6, few, 30, many)
    assert found.first == 0.0 and found.overhead == min(few / 6, many / 30) > 0


def test_calls_with_work_are_told_from_idle_ones_in_as_many_a_row() -> None:
    """4 calls of 1 s and 2 s once take 1.5 s each; those with work 3.5 s."""
    found = op_rate("torch", Idle(2.0, 1.0), Timed(10.0, 0.0, 3.5), in_a_row=4)
    assert found == OpRate(1.0, 5.0, None, first=2.0)


def test_the_middle_of_several_is_each_fields_median() -> None:
    rates = [OpRate(3.0, 10.0, None, 7.0), OpRate(1.0, 30.0, None), OpRate(2.0, None, 5.0, 4.0)]
    assert middle(rates) == OpRate(2.0, 30.0, None, 4.0)
    assert middle(rates[:1]) == rates[0]


@pytest.mark.parametrize("field", ["overhead", "bandwidth", "flops"])
def test_rates_are_above_zero(field) -> None:
    values = {"overhead": 1.0, "bandwidth": 1.0, "flops": 1.0, field: 0.0}
    with pytest.raises(ValueError, match=f"{field} is 0.0; it must be above 0"):
        OpRate(**values)
    with pytest.raises(ValueError, match="first is -1.0; it must be at least 0"):
        OpRate(1.0, 1.0, 1.0, first=-1.0)


def test_causal_forwards_write_to_the_cache_as_they_rotate() -> None:
    for kind, block in ((DECODE, 1), (DENOISE, 32), (QUADRATIC, 20)):
        forward = Forward(kind, 1, block, 100, "float32")
        works = step_work.step_work(PRESETS["tiny"], forward, "torch")[EMBEDDING]
        (rotates,) = {work.op for work in works} - {"lookup", "residual_norm"}
        assert rotates == ("rope_kv_write" if kind == DENOISE else step_work.WRITING)


def test_the_torch_backends_tiles_are_those_that_are_counted() -> None:
    assert step_work.LINEAR_ROWS == torch_backend._LINEAR_ROWS
    assert step_work.TILE_ROWS == torch_backend._TILE_ROWS
    assert step_work.TILE_KEYS == torch_backend._TILE_KEYS
    assert step_work.HEAD_LOGITS == torch_backend._HEAD_LOGITS


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_our_products_are_at_least_the_compulsory_ones(kind, backend) -> None:
    block = {DECODE: 1, "quadratic": 20}.get(kind, 32)
    forward = Forward(kind, 3, block, 700, "bfloat16")
    costs = step_cost(PRESETS["8b"], forward)
    stages = step_work.step_work(PRESETS["8b"], forward, backend)
    assert stages.keys() == costs.keys()
    for stage in (PROJECTIONS, ATTENTION, HEAD):
        flops = sum(work.calls * work.flops for work in stages[stage])
        products = costs[stage].flops
        if stage == PROJECTIONS:  # less silu(gate) * up
            products -= 3.0 * forward.rows * 14336 * 34
        if stage == HEAD:  # less the statistics
            rows = forward.rows - 3 if kind == DRAFT else forward.rows
            products -= 4.0 * rows * 131072
        assert flops >= products * 0.999


def test_rows_are_padded_to_whole_groups() -> None:
    """One row and 32 are the same products on torch; a 33rd begins another 32."""

    def flops(rows: int, backend: str) -> float:
        forward = Forward(DENOISE, 1, rows, 0, "float32")
        works = step_work.step_work(PRESETS["tiny"], forward, backend)[PROJECTIONS]
        return sum(work.calls * work.flops for work in works)

    assert flops(1, "torch") == flops(32, "torch") == flops(33, "torch") / 2
    assert flops(1, "triton") == flops(16, "triton") == flops(17, "triton") / 2


def test_torch_attention_by_hand() -> None:
    """Two requests of 17 rows behind 100 keys: 2 tiles of 64 keys by 2 groups of 16 rows, each for
    2 KV heads of 32 with 4 query heads, scores and values.
    """
    forward = Forward(DENOISE, 2, 17, 100, "float32")
    first, further = step_work.step_work(PRESETS["tiny"], forward, "torch")[ATTENTION]
    assert (first.op, first.calls) == ("block_attention", 4)
    assert (further.op, further.calls) == ("block_attention request", 4)
    product, scores = 2 * 2 * 64 * 64 * 32, 2 * 64 * 64
    assert first.flops == further.flops == 2 * (2 * 2) * product
    copied = 2 * 128 * 2 * 32 * (4 + 4)
    assert first.bytes == further.bytes == copied + 4 * 10 * (2 * 2) * scores


def test_draft_groups_of_torch_attention_are_tiles_of_their_own() -> None:
    """k 4 behind 100 keys: 104 keys in 2 tiles by 2 groups of rows, and 4 tiles that 6 see."""
    forward = Forward(QUADRATIC, 1, 20, 100, "float32")
    first, groups = step_work.step_work(PRESETS["tiny"], forward, "torch")[ATTENTION]
    assert first.flops == 2 * (2 * 2 + 6) * 2 * 2 * 64 * 64 * 32
    copied = 2 * (2 + 4) * 64 * 2 * 32 * (4 + 4)
    assert first.bytes == copied + 4 * 10 * (2 * 2 + 6) * 2 * 64 * 64
    assert (groups.op, groups.calls) == ("block_attention group", 4 * 4)


def test_quantised_weights_and_caches_are_ops_of_their_own() -> None:
    forward = Forward(DENOISE, 1, 32, 10, "float32", weights="int4", float8_cache=True)
    stages = step_work.step_work(PRESETS["tiny"], forward, "torch")
    assert {work.op for work in stages[PROJECTIONS]} == {"linear int4", "gated_silu"}
    assert [work.op for work in stages[ATTENTION]] == ["block_attention float8"]  # one request
    assert {work.op for work in stages[EMBEDDING]} == {"lookup", "residual_norm", "rope_kv_write"}
    assert [work.op for work in stages[REMASK]] == ["remask_scatter"]


def test_the_heads_weight_is_read_once_a_group_of_logits() -> None:
    config = PRESETS["8b"]
    at_once = 2**25 // config.vocab_size
    for rows, reads in ((at_once, 1), (at_once + 1, 2)):
        forward = Forward(DENOISE, 1, rows, 0, "float32")
        product, logits = step_work.step_work(config, forward, "torch")[HEAD]
        assert product.bytes == reads * 4 * config.hidden_size * config.vocab_size
        assert logits.calls == reads
        assert logits.calls * logits.bytes == 4 * rows * config.vocab_size


def test_a_quadratic_forward_has_two_passes_of_the_head() -> None:
    forward = Forward(QUADRATIC, 3, 20, 10, "bfloat16")
    works = step_work.step_work(PRESETS["8b"], forward, "triton")[HEAD]
    size = 4096 * 131072
    assert [work.flops for work in works] == [2 * 16 * size, 2 * 16 * size]
    assert [work.bytes for work in works] == [2 * size, 2 * size]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_two_shards_have_half_of_the_heads_and_weights(backend) -> None:
    def stages(shards: int) -> dict[str, list[step_work.Work]]:
        forward = Forward(DENOISE, 2, 32, 1000, "bfloat16", shards=shards)
        return step_work.step_work(PRESETS["8b"], forward, backend)

    one, two = stages(1), stages(2)
    assert ALL_REDUCE not in two
    for work, half in zip(one[ATTENTION], two[ATTENTION], strict=True):
        assert (half.flops, half.bytes) == (work.flops / 2, work.bytes / 2)
    for work, half in zip(one[PROJECTIONS], two[PROJECTIONS], strict=True):
        assert (half.flops, half.bytes) == (work.flops / 2, work.bytes / 2)
