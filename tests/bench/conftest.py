"""A small record of made-up round figures."""

import pytest

from dlm_core import PRESETS
from dlm_kernels import Cost
from dlm_roofline.ceilings import Ceiling, Ceilings, Latency
from dlm_roofline.forward import DECODE, DENOISE, STEP_NAMES, Forward
from dlm_roofline.records import BenchRecord, Device, Peer, Row, Skipped, Timing
from dlm_roofline.step_cost import step_cost, total


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, runs=9, cold=True, graph=False)


def op_row(name: str, shape: dict[str, int], seconds: float, cost: Cost, **more) -> Row:
    amounts = cost.flops, cost.bytes, cost.exps
    dtype = more.pop("dtype", "bfloat16")
    return Row("op", name, None, None, shape, dtype, *amounts, timing(seconds), **more)


def peer(name: str, seconds: float) -> Peer:
    return Peer(name, timing(seconds), None)


@pytest.fixture
def record() -> BenchRecord:
    """Of an H200 that reads 4 TB/s and does 800 TFLOP/s in bfloat16: two calls of attention, and
    forwards of an 8B model that take twice their floor.

    Of denoising steps some have stages, one also a peer, and one has int8 weights.
    """
    config, shape = PRESETS["8b"], {"batch": 1, "block": 32, "context": 1024}
    refused = Peer("SDPA flash", None, "no kernel")
    large, few = Cost(0.1e12, 4e9), Cost(1.2e12, 0.4e9)
    record = BenchRecord(
        complete=True,
        scope="standard",
        date="2026-01-02T03:04:05Z",
        commit="0123456789abcdef",
        dirty=False,
        command="dlm bench",
        backend="triton",
        versions={"torch": "2.11.0"},
        device=Device("cuda", "NVIDIA H200", {"driver": "580.1"}),
        ceilings=Ceilings(
            Ceiling(4e12, 3.9e12, 15),
            Ceiling(3.8e12, 3.7e12, 15),
            Ceiling(3.5e12, 3.4e12, 15),
            {"bfloat16": Ceiling(800e12, 790e12, 15)},
            launch=Latency(3e-6, 4e-6, 15),
            graph_node=Latency(1e-6, 1e-6, 15),
        ),
        models={"8B": config},
        rows=[
            op_row("block_attention", shape, 2e-3, large, peers=[peer("SDPA math", 5e-3), refused]),
            op_row("block_attention", shape | {"batch": 8}, 2e-3, few,
                   peers=[peer("SDPA flash", 1e-3)]),
        ],
        skipped=[Skipped("block_attention, batch 64", "out of time")],
    )  # fmt: skip

    def add(forward: Forward, *, stages: bool = False, peers: bool = False) -> None:
        costs, roof = step_cost(config, forward), record.roof("bfloat16")
        took = {name: 2 * roof.seconds(cost) for name, cost in costs.items()}
        measured = (costs if stages else {}) | {STEP_NAMES[forward.kind]: total(costs)}
        for name, cost in measured.items():
            seconds = took.get(name, sum(took.values()))
            beside = [peer("plain torch", 3 * seconds)] if peers else []
            record.rows.append(
                Row.of_model(name, "8B", forward, cost, timing(seconds), peers=beside)
            )

    for batch, context in ((8, 1024), (1, 1024), (64, 1024), (1, 4096)):
        whole = Forward(DENOISE, batch, 32, context, "bfloat16")
        add(whole, stages=context == 1024, peers=(batch, context) == (1, 1024))
    add(Forward(DENOISE, 1, 32, 1024, "bfloat16", weights="int8"))
    for batch, context in ((4, 4096), (1, 1024)):
        add(Forward(DECODE, batch, 1, context, "bfloat16"))
    return record
