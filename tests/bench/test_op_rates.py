"""The rates of our ops: every op that a forward calls is measured, by what it does."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dlm_bench import op_rates
from dlm_bench.op_rates import IN_A_ROW, LOOKUP_MODEL, MANY, SIZES, Sizes
from dlm_bench.plan import GRID_MODEL, HOST_MODEL, Planned, gpu_plan, host_plan, small_plan
from dlm_bench.timing import Stopwatch
from dlm_core import PRESETS
from dlm_roofline.forward import DECODE, DENOISE, KINDS, QUADRATIC, WEIGHTS, Forward
from dlm_roofline.op_rates import OpRate
from dlm_roofline.records import Timing
from dlm_roofline.step_work import attention_work, step_work

CPU = torch.device("cpu")
SMALL = Sizes(128, (4, 2, 16), 4, 64, 1, 70, 256, 8, 96)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    monkeypatch.setitem(op_rates.SIZES, "cpu", SMALL)
    return SMALL


def clock_of(seconds: Callable[[], float]) -> Callable[..., Timing]:
    """A clock that runs what it times, and says what it is told to."""

    def clock(run, reset=lambda: None) -> Timing:
        reset()
        run()
        value = seconds()
        return Timing(value, value, value, runs=1, cold=True, graph=False)

    return clock


def ticking() -> Callable[[], float]:
    ticks = iter(range(1, 100))
    return lambda: float(next(ticks))


def measured(seconds: Callable[[], float], **options) -> dict[str, OpRate]:
    found = op_rates.op_rates(CPU, torch.float32, clock_of(seconds), **options)
    return {name: measure() for name, measure in found.items()}


def test_every_op_of_every_forward_is_measured(sizes) -> None:
    found = measured(lambda: 1e-3)
    for kind in KINDS:
        for weights in (None, *WEIGHTS):
            for float8_cache in (False, True):
                block = {DECODE: 1, QUADRATIC: 20}.get(kind, 32)
                options = {"weights": weights, "float8_cache": float8_cache}
                forward = Forward(kind, 2, block, 100, "float32", **options)
                for works in step_work(PRESETS["tiny"], forward, "torch").values():
                    assert {work.op for work in works} <= found.keys()


def test_calls_in_a_row_are_shared_out(sizes) -> None:
    """A clock that always says 6 ms: few calls of an op take as long as many."""
    found = measured(lambda: 6e-3, kinds=())
    for name in ("residual_norm", "linear", "block_attention", "lookup", "remask_scatter"):
        assert (found[name].overhead, found[name].first) == (pytest.approx(6e-3 / MANY), 0.0)
    # More requests take no longer by this clock, so each takes next to nothing.
    assert found["block_attention request"].overhead == op_rates.LEAST_SECONDS


def test_rates_are_work_over_the_time_beyond_an_idle_call(sizes) -> None:
    """Each later timing says a second more: few idle calls, many, and those with work. So many take
    a second more than few, and work two.
    """
    found = measured(ticking(), kinds=())
    rows, (query_heads, kv_heads, head_dim) = SMALL.rows, SMALL.heads
    in_a_row = {  # float32 rows that are read and written
        "residual_norm": 4 * rows * (2 + 2) * SMALL.features,
        "rope_kv_write": 4 * rows * 2 * (query_heads + 2 * kv_heads) * head_dim,
        "gated_silu": 4 * rows * (2 + 1) * SMALL.features,
    }
    once = {
        "lookup": 4 * rows * 2 * LOOKUP_MODEL.hidden_size,
        "confidence": 4 * rows * SMALL.vocab,
        "remask_scatter": 128 * 64**2,  # pairs of places in a block
    }
    for name, amount in in_a_row.items():
        assert found[name].bandwidth == pytest.approx(amount * IN_A_ROW / 2), name
        assert found[name].overhead == pytest.approx(1 / (MANY - IN_A_ROW))
    for name, amount in once.items():
        assert found[name].bandwidth == pytest.approx(amount / 2), name
        assert found[name].overhead == pytest.approx(1 / (MANY - 1))
    assert all(found[name].flops is None for name in in_a_row | once)
    # Idle, 4 rows and 64: the products of 32 and of 64 rows take 2 and 3 ticks more.
    product = 2 * 32 * SMALL.features**2
    assert found["linear"].flops == pytest.approx(product / (1 / IN_A_ROW))
    assert found["linear"].bandwidth == pytest.approx(4 * SMALL.features**2 / (1 / IN_A_ROW))


PLANS = {
    "gpu": (PRESETS["8b"], gpu_plan, "bfloat16"),
    "gpu, 3B": (PRESETS["3b"], gpu_plan, "bfloat16"),
    "gpu, tiny": (PRESETS["tiny"], gpu_plan, "bfloat16"),
    "host in detail": (HOST_MODEL, small_plan, "float32"),
    "host": (GRID_MODEL, host_plan, "float32"),
}


@pytest.mark.parametrize("device", SIZES)
def test_shapes_are_those_of_no_model(device: str) -> None:
    sizes = SIZES[device]
    for config in (*PRESETS.values(), HOST_MODEL, GRID_MODEL):
        heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        assert sizes.heads != heads
        widths = {config.hidden_size, config.intermediate_size}
        assert widths.isdisjoint({sizes.features, sizes.head_features, LOOKUP_MODEL.hidden_size})
        assert sizes.vocab != config.vocab_size


@pytest.mark.parametrize("device", SIZES)
@pytest.mark.parametrize("plan", PLANS)
def test_contexts_are_those_of_no_plan(device: str, plan: str) -> None:
    config, plan_of, dtype = PLANS[plan]
    planned: list[Planned] = plan_of(config, dtype)
    assert SIZES[device].context not in {each.forward.context for each in planned}


@pytest.mark.parametrize("float8", [False, True], ids=["float32 cache", "float8 cache"])
def test_attention_s_time_is_told_apart_by_request_and_by_draft_group(
    sizes, monkeypatch: pytest.MonkeyPatch, float8: bool
) -> None:
    """A call takes 1 s, each of its requests 2 s and its work, each of its draft groups 7 s."""
    a_byte, a_flop, taken = 1e-6, 1e-9, []
    config = replace(PRESETS["8b"], num_attention_heads=4, num_key_value_heads=2, head_dim=16)

    def call(q, k_cache, v_cache, lengths, k, v, *, draft_groups, max_context, **scales) -> None:
        batch, rows = q.shape[:2]
        assert lengths.tolist() == [max_context] * batch and bool(scales) == float8
        of_request = 2.0
        if max_context:
            forward = Forward(DENOISE, 1, rows, max_context, "float32", float8_cache=float8)
            sizes = replace(config, head_dim=q.shape[-1])
            (work,) = attention_work("", 1, forward, sizes, "torch")
            of_request += work.bytes * a_byte + work.flops * a_flop
        groups = draft_groups[0] if draft_groups else 0
        taken.append(1.0 + batch * (of_request + 7.0 * groups))

    def clock(run) -> Timing:
        taken.clear()
        run()
        return Timing(sum(taken), sum(taken), sum(taken), runs=1, cold=True, graph=False)

    monkeypatch.setattr(op_rates, "block_attention", call)
    found = op_rates.op_rates(CPU, torch.float32, clock, kinds=())
    cache = " float8" if float8 else ""
    first, further, group = (
        found[f"block_attention{cache}{what}"]() for what in ("", " request", " group")
    )
    assert first.overhead == pytest.approx(1.0 + 2.0)
    assert further.overhead == pytest.approx(2.0)
    for rate in (first, further):
        assert rate.bandwidth == pytest.approx(1 / a_byte)
        assert rate.flops == pytest.approx(1 / a_flop)
    assert group.overhead == pytest.approx(7.0)
    assert group.bandwidth is None and group.flops is None


def test_the_lm_head_is_timed_over_features_of_its_own() -> None:
    """4 and 64 rows, which torch pads to 32 and 64, by a clock that says 1 and 2 s for few and many
    idle calls, 3 and 4 s for these.
    """
    sizes = replace(SMALL, multiplying_rows=128)
    found = op_rates._OpBench(CPU, torch.float32, clock_of(ticking()), sizes).lm_head()
    product = 2 * 32 * SMALL.vocab * SMALL.head_features
    assert found.bandwidth == pytest.approx(4 * SMALL.vocab * SMALL.head_features)
    assert found.flops == pytest.approx(product)


@pytest.mark.gpu
def test_every_op_has_a_rate_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    clock = Stopwatch(device, budget=0.0).time_graph
    for name, measure in op_rates.op_rates(device, torch.bfloat16, clock).items():
        rate = measure()
        assert rate.overhead < 1e-3, name
        assert rate.bandwidth is not None, name
