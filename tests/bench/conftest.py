"""A small record of made-up round figures."""

import pytest
from made_up import PEAK, READ, record_of, rows_of

from dlm_kernels import Cost
from dlm_roofline.forward import DECODE, DENOISE, Forward
from dlm_roofline.records import BenchRecord, Peer, Row, Timing

# A millisecond of reading, and one of products.
READING, MULTIPLYING = Cost(1e-4 * PEAK, 1e-3 * READ), Cost(1e-3 * PEAK, 1e-4 * READ)


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, runs=9, cold=True, graph=False)


def op_row(name: str, shape: dict[str, int], seconds: float, cost: Cost, **more) -> Row:
    amounts = cost.flops, cost.bytes, cost.exps
    return Row("op", name, None, None, shape, "bfloat16", *amounts, timing(seconds), **more)


def peer(name: str, seconds: float) -> Peer:
    return Peer(name, timing(seconds), None)


@pytest.fixture
def record() -> BenchRecord:
    """Of an H200: denoising steps, three with stages, one behind a longer context, one with int8
    weights; AR decoding steps; and two calls of attention.
    """
    made = record_of((8, 1, 64), [DENOISE])
    for forward in (
        Forward(DENOISE, 1, 32, 4096, "bfloat16"),
        Forward(DENOISE, 1, 32, 1024, "bfloat16", weights="int8"),
        Forward(DECODE, 4, 1, 4096, "bfloat16"),
        Forward(DECODE, 1, 1, 1024, "bfloat16"),
    ):
        made.rows.extend(rows_of(forward, on_gpu=True, stages=False))
    shape = {"batch": 1, "block": 32, "context": 1024}
    peers = [peer("SDPA math", 5e-3), Peer("SDPA flash", None, "no kernel")]
    made.rows.append(op_row("block_attention", shape, 2e-3, READING, peers=peers))
    peers = [peer("SDPA flash", 1e-3)]
    shape = shape | {"batch": 8}
    made.rows.append(op_row("block_attention", shape, 2e-3, MULTIPLYING, peers=peers))
    return made
