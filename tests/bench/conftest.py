"""Small records of made-up round figures."""

import pytest

from dlm_core import PRESETS
from dlm_roofline.ceilings import Ceiling, Ceilings, Latency
from dlm_roofline.forward import DECODE, DENOISE, STEP_NAMES, Forward
from dlm_roofline.records import SCHEMA, Device, Peer, Record, Row, Skipped, Timing
from dlm_roofline.step_cost import step_cost, total


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, runs=9, cold=True, graph=False)


@pytest.fixture
def record() -> Record:
    """Of an H200 that reads 4 TB/s and does 800 TFLOP/s in bfloat16; one op, four shapes."""

    def row(batch: int, gigabytes: float, teraflops: float, peers: list[Peer]) -> Row:
        shape = {"batch": batch, "block": 32, "context": 1024}
        work = (teraflops * 1e12, gigabytes * 1e9, 0.0)
        took = timing(2e-3)
        return Row("op", "block_attention", None, None, shape, "bfloat16", *work, took, peers)

    slower = Peer("SDPA math", timing(5e-3), None)
    refused = Peer("SDPA flash", None, "no kernel")
    return Record(
        schema=SCHEMA,
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
        rows=[
            row(1, gigabytes=4, teraflops=0.1, peers=[slower, refused]),
            row(8, gigabytes=0.4, teraflops=1.2, peers=[Peer("SDPA flash", timing(1e-3), None)]),
        ],
        skipped=[Skipped("block_attention, batch 64", "out of time")],
    )


@pytest.fixture
def forwards(record: Record) -> Record:
    """The same with forwards of an 8B model that take twice their floor.

    Of denoising steps one in detail, stages of three batches at two contexts, and int8 weights; of
    decoding whole forwards.
    """
    config = PRESETS["8b"]
    record.models["8B"] = config

    def add(forward: Forward, *, stages: bool = False, peers: bool = False) -> None:
        costs, roof = step_cost(config, forward), record.roof("bfloat16")
        beside = [Peer("plain torch", timing(1.0), None)] if peers else []
        took = {name: 2 * roof.seconds(cost) for name, cost in costs.items()}
        measured = dict(costs) if stages else {}
        measured[STEP_NAMES[forward.kind]] = total(costs)
        for name, cost in measured.items():
            seconds = took.get(name, sum(took.values()))
            row = Row.of_stage(name, "8B", forward, cost, timing(seconds), peers=list(beside))
            record.rows.append(row)

    for batch, context in ((8, 1024), (1, 1024), (64, 1024), (1, 4096)):
        whole = Forward(DENOISE, batch, 32, context, "bfloat16")
        add(whole, stages=context == 1024, peers=(batch, context) == (1, 1024))
    add(Forward(DENOISE, 1, 32, 1024, "bfloat16", weights="int8"))
    for batch, context in ((4, 4096), (1, 1024)):
        add(Forward(DECODE, batch, 1, context, "bfloat16"))
    return record
