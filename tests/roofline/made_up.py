"""Made-up records of an H200 and a host: every figure follows from the roof by a stated factor."""

from collections.abc import Sequence
from dataclasses import replace

from dlm_core import PRESETS
from dlm_roofline.ceilings import Ceiling, Ceilings, Latency
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, QUADRATIC, STEP_NAMES, VERIFY, Forward
from dlm_roofline.records import BenchRecord, Device, Peer, Row, Skipped, Timing
from dlm_roofline.step_cost import step_cost, total

READ, PEAK = 4.3e12, 790e12
SLOWDOWN = 1.25  # every stage takes so much longer than its floor
PEER_SLOWDOWN = 2.0  # and the whole step in plain torch so much longer than the step

MODEL, CONTEXT = "8B, random weights", 1024
BLOCKS = {DENOISE: 32, DECODE: 1, DRAFT: 32, VERIFY: 32, QUADRATIC: 110}


def ceiling(best: float) -> Ceiling:
    return Ceiling(best, 0.98 * best, 15)


CEILINGS = Ceilings(
    read=ceiling(READ),
    copy=ceiling(0.95 * READ),
    write=ceiling(0.9 * READ),
    matmul={
        "bfloat16": ceiling(PEAK),
        "float16": ceiling(1.01 * PEAK),
        "tf32": ceiling(0.5 * PEAK),
        "float32": ceiling(51e12),
    },
    exps=ceiling(3.7e12),
    l2=ceiling(6e12),
    launch=Latency(3e-6, 3.5e-6, 15),
    graph_node=Latency(1e-6, 1.1e-6, 15),
)
HOST_CEILINGS = replace(
    CEILINGS,
    read=ceiling(40e9),
    matmul={"float32": ceiling(180e9), "bfloat16": ceiling(430e9)},
    exps=None,
    l2=None,
    graph_node=None,
)
H200 = Device("cuda", "NVIDIA H200", {"driver": "580.1", "SM clock": "1755 MHz"})
HOST = Device("cpu", "AMD EPYC", {"threads": "2", "memory": "24 GiB"})


def timed(row: Row, seconds: float, spread: float = 1.0) -> Row:
    """The row if it took so long; spread: the upper quartile of its runs over the lower."""
    timing = replace(row.timing, median=seconds, low=seconds, high=spread * seconds)
    return replace(row, timing=timing)


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
    seconds = SLOWDOWN * sum(roof.seconds(cost) for cost in costs.values())
    peers = [Peer("plain torch", timing(PEER_SLOWDOWN * seconds), None)]
    name = STEP_NAMES[forward.kind]
    rows.append(Row.of_model(name, MODEL, forward, total(costs), timing(seconds), peers=peers))
    return rows


def record_of(
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    kinds: Sequence[str] = tuple(BLOCKS),
    contexts: Sequence[int] = (),
    *,
    on_gpu: bool = True,
) -> BenchRecord:
    """Forwards of these kinds and batches behind 1024 tokens, with stages, and whole denoising and
    AR decoding steps behind the other contexts.
    """
    rows, dtype = [], "bfloat16" if on_gpu else "float32"
    for kind in kinds:
        for batch in batches:
            forward = Forward(kind, batch, BLOCKS[kind], CONTEXT, dtype)
            rows += rows_of(forward, on_gpu=on_gpu)
            for context in contexts if kind in (DENOISE, DECODE) else ():
                rows += rows_of(replace(forward, context=context), on_gpu=on_gpu, stages=False)
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
