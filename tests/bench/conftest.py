"""A small record of made-up round figures."""

import pytest

from dlm_roofline.ceilings import Ceiling, Ceilings
from dlm_roofline.records import SCHEMA, Device, Peer, Record, Row, Skipped, Timing


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, runs=9, cold=True, graph=False)


@pytest.fixture
def record() -> Record:
    """Of an H200 that reads 4 TB/s and does 800 TFLOP/s in bfloat16; one op, four shapes."""

    def row(batch: int, gigabytes: float, teraflops: float, peers: list[Peer]) -> Row:
        shape = {"batch": batch, "block": 32, "context": 1024}
        cost = (teraflops * 1e12, gigabytes * 1e9)
        return Row("op", "block_attention", None, shape, "bfloat16", *cost, timing(2e-3), peers)

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
        ),
        rows=[
            row(1, gigabytes=4, teraflops=0.1, peers=[slower, refused]),
            row(8, gigabytes=0.4, teraflops=1.2, peers=[Peer("SDPA flash", timing(1e-3), None)]),
        ],
        skipped=[Skipped("block_attention, batch 64", "out of time")],
    )
