"""Made-up records of an H200 and a host: every figure follows from the roof by a stated factor."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from dlm_core import PRESETS
from dlm_roofline.ceilings import Ceiling, Ceilings, Latency
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, QUADRATIC, STEP_NAMES, VERIFY, Forward
from dlm_roofline.records import BenchRecord, Device, Peer, Row, Skipped, Timing
from dlm_roofline.step_cost import step_cost, total

READ, PEAK = 4.3e12, 790e12
SLOWDOWN = 1.25  # every stage takes so much longer than its floor
PEER_SLOWDOWN = 2.0  # and the whole step in plain torch so much longer than the step

MODEL, CONTEXT = "8B, random weights", 1024
BLOCKS = {DECODE: 1, DENOISE: 32, DRAFT: 32, VERIFY: 32, QUADRATIC: 110}

CEILINGS = Ceilings(
    Ceiling(READ, 0.99 * READ, 15),
    Ceiling(0.95 * READ, 0.94 * READ, 15),
    Ceiling(0.9 * READ, 0.9 * READ, 15),
    {
        "bfloat16": Ceiling(PEAK, 0.98 * PEAK, 15),
        "float16": Ceiling(1.01 * PEAK, PEAK, 15),
        "tf32": Ceiling(0.5 * PEAK, 0.5 * PEAK, 15),
        "float32": Ceiling(51e12, 50e12, 15),
    },
    exps=Ceiling(3.7e12, 3.6e12, 15),
    l2=Ceiling(6e12, 5.8e12, 15),
    launch=Latency(3e-6, 3.5e-6, 15),
    graph_node=Latency(1e-6, 1.1e-6, 15),
)
HOST_CEILINGS = replace(
    CEILINGS,
    read=Ceiling(40e9, 39e9, 15),
    matmul={"float32": Ceiling(180e9, 170e9, 15), "bfloat16": Ceiling(430e9, 400e9, 15)},
    exps=None,
    l2=None,
    graph_node=None,
)
H200 = Device("cuda", "NVIDIA H200", {"driver": "580.1", "SM clock": "1755 MHz"})
HOST = Device("cpu", "AMD EPYC", {"threads": "2", "memory": "24 GiB"})


def rows_of(forward: Forward, *, on_gpu: bool, stages: bool = True) -> list[Row]:
    """The whole forward of the 8B model, its plain-torch peer, and its stages."""
    config, ceilings = PRESETS["8b"], CEILINGS if on_gpu else HOST_CEILINGS
    roof, costs = ceilings.roof(forward.dtype), step_cost(config, forward)

    def timing(seconds: float) -> Timing:
        return Timing(seconds, 0.98 * seconds, 1.05 * seconds, runs=40, cold=True, graph=on_gpu)

    rows = [
        Row.of_model(name, MODEL, forward, cost, timing(SLOWDOWN * roof.seconds(cost)))
        for name, cost in costs.items()
        if stages
    ]
    seconds = SLOWDOWN * roof.step_seconds(costs)
    peers = [Peer("plain torch", timing(PEER_SLOWDOWN * seconds), None)]
    name = STEP_NAMES[forward.kind]
    rows.append(Row.of_model(name, MODEL, forward, total(costs), timing(seconds), peers=peers))
    return rows


@pytest.fixture(scope="session")
def make_record() -> Callable[..., BenchRecord]:
    """Builds a record of forwards of these kinds and batches behind 1024 tokens, with stages, and
    of whole denoising and AR decoding steps behind the other contexts.
    """

    def build(
        batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
        kinds: Sequence[str] = (DENOISE,),
        contexts: Sequence[int] = (),
        *,
        on_gpu: bool = True,
    ) -> BenchRecord:
        rows, dtype = [], "bfloat16" if on_gpu else "float32"
        for kind in kinds:
            for batch in batches:
                forward = Forward(kind, batch, BLOCKS[kind], CONTEXT, dtype)
                rows += rows_of(forward, on_gpu=on_gpu)
                for context in contexts if kind in (DENOISE, DECODE) else ():
                    further = replace(forward, context=context)
                    rows += rows_of(further, on_gpu=on_gpu, stages=False)
        return BenchRecord(
            complete=True,
            scope="standard",
            date="2026-01-02T03:04:05Z",
            commit="0123456789abcdef",
            dirty=False,
            command="dlm bench",
            backend="triton" if on_gpu else "torch",
            versions={"python": "3.12.1", "torch": "2.11.0", "triton": "3.6.0"},
            device=H200 if on_gpu else HOST,
            ceilings=CEILINGS if on_gpu else HOST_CEILINGS,
            models={MODEL: PRESETS["8b"]},
            rows=rows,
            skipped=[Skipped("block_attention, batch 64", "out of time")],
        )

    return build


@pytest.fixture(scope="session")
def record(make_record: Callable[..., BenchRecord]) -> BenchRecord:
    """Denoising steps alone, behind one context, on a GPU."""
    return make_record()


@pytest.fixture(scope="session")
def grid_record(make_record: Callable[..., BenchRecord]) -> BenchRecord:
    """All kinds of forwards, and whole steps over batch and context, on a GPU."""
    return make_record(
        kinds=(DENOISE, DECODE, DRAFT, VERIFY, QUADRATIC), contexts=(4096, 16384, 32768)
    )


@pytest.fixture(scope="session")
def host_record(make_record: Callable[..., BenchRecord]) -> BenchRecord:
    """The same kinds at two batches, on a host of two threads."""
    kinds = (DENOISE, DECODE, DRAFT, VERIFY, QUADRATIC)
    return make_record((1, 16), kinds, contexts=(4096,), on_gpu=False)
