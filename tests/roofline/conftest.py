"""A made-up record of an H200, whose every figure follows from its roof by a stated factor."""

from collections.abc import Callable

import pytest

from dlm_core import PRESETS
from dlm_roofline.ceilings import Ceiling, Ceilings
from dlm_roofline.predict import Roof
from dlm_roofline.records import SCHEMA, Device, Peer, Record, Row, Skipped, Timing
from dlm_roofline.step_cost import DENOISING_STEP, step_cost, total

READ, PEAK = 4.3e12, 790e12
SLOWDOWN = 1.25  # every stage takes so much longer than its floor
PEER_SLOWDOWN = 2.0  # and the whole step in plain torch so much longer than the step

MODEL, CONTEXT = "8B, random weights", 1024


def timing(seconds: float) -> Timing:
    return Timing(seconds, 0.98 * seconds, 1.05 * seconds, runs=40, cold=True, graph=True)


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """Builds the record with whole steps of these batches, blocks of 32 behind 1024 tokens."""

    def build(batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)) -> Record:
        config, roof, rows = PRESETS["8b"], Roof(READ, PEAK), []
        for batch in batches:
            shape = {"batch": batch, "block": 32, "context": CONTEXT}
            stages = step_cost(config, **shape, itemsize=2)
            for name, cost in stages.items():
                seconds = timing(SLOWDOWN * roof.seconds(cost))
                rows.append(
                    Row("stage", name, MODEL, shape, "bfloat16", cost.flops, cost.bytes, seconds)
                )
            cost, seconds = total(stages), SLOWDOWN * roof.step_seconds(stages)
            peers = [Peer("plain torch", timing(PEER_SLOWDOWN * seconds), None)]
            rows.append(
                Row(
                    "step",
                    DENOISING_STEP,
                    MODEL,
                    shape,
                    "bfloat16",
                    cost.flops,
                    cost.bytes,
                    timing(seconds),
                    peers,
                )
            )
        return Record(
            schema=SCHEMA,
            complete=True,
            scope="standard",
            date="2026-01-02T03:04:05Z",
            commit="0123456789abcdef",
            dirty=False,
            command="dlm bench",
            backend="triton",
            versions={"python": "3.12.1", "torch": "2.11.0", "triton": "3.6.0"},
            device=Device("cuda", "NVIDIA H200", {"driver": "580.1", "SM clock": "1755 MHz"}),
            ceilings=Ceilings(
                Ceiling(READ, 0.99 * READ, 15),
                Ceiling(0.95 * READ, 0.94 * READ, 15),
                Ceiling(0.9 * READ, 0.9 * READ, 15),
                {
                    "bfloat16": Ceiling(PEAK, 0.98 * PEAK, 15),
                    "float16": Ceiling(1.01 * PEAK, PEAK, 15),
                    "tf32": Ceiling(0.5 * PEAK, 0.5 * PEAK, 15),
                    "float32": Ceiling(51e12, 50e12, 15),
                },
            ),
            models={MODEL: config},
            rows=rows,
            skipped=[Skipped("block_attention, batch 64", "out of time")],
        )

    return build


@pytest.fixture(scope="session")
def record(make_record: Callable[..., Record]) -> Record:
    return make_record()
