"""Targets on a record: which row each finds, what its figure is, and whether it holds."""

from dataclasses import replace

import pytest
from made_up import SLOWDOWN

from dlm_bench.cases import FAST, OTHER_CACHE
from dlm_bench.targets import TARGETS, evaluate
from dlm_roofline.forward import STEP_NAMES
from dlm_roofline.records import BenchRecord

from .conftest import READING, op_row, peer


def test_every_target_is_another_and_without_its_row_has_no_verdict(record: BenchRecord) -> None:
    keys = [(t.name, t.what, tuple(t.sizes.items()), t.dtype, t.weights) for t in TARGETS]
    assert len(set(keys)) == len(keys) > 40
    for each in evaluate(replace(record, rows=[])):
        assert (each.row, each.figure, each.holds) == (None, None, None)


def test_a_step_is_held_to_its_floor_and_few_bits_to_16(record: BenchRecord) -> None:
    found = [x for x in evaluate(record) if x.target.name == STEP_NAMES["denoise"] and x.row]
    over = {x.target.sizes["batch"]: x for x in found if x.target.what == "over its floor"}
    assert {batch: x.holds for batch, x in over.items()} == {1: False, 8: True, 64: True}
    assert [x.figure for x in over.values()] == pytest.approx([SLOWDOWN] * 3)
    (int8,) = [x for x in found if x.target.what == "16-bit step over int8"]
    assert 1 < int8.figure < 2 and int8.holds is (int8.figure >= 1.7)


LONG, ROWS = {"batch": 64, "context": 32768}, {"rows": 2048, "vocab": 100}
SOFTMAX, OF_BYTES = "softmax, gather", "of the ratio of bytes to softmax, gather"
DENSE, FLOAT8, HEAD = "block_attention", "block_attention, float8 cache", "lm_head_confidence"


@pytest.mark.parametrize(
    ("what", "op", "sizes", "ms", "peers", "figure", "holds"),
    [
        ("of its floor's rate", DENSE, LONG, 1.25, {}, 0.8, True),
        ("best peer's time over ours", DENSE, LONG, 2,
         {"SDPA flash": 3, "SDPA math": 9, "cat + SDPA flash": 1, FAST: 1}, 3, True),
        ("16-bit cache over ours", FLOAT8, LONG, 2, {OTHER_CACHE: 3, FAST: 1}, 3, True),
        ("over torch's product alone", HEAD, ROWS, 2, {"product alone": 1, FAST: 1.1}, 1.1, False),
        ("peak, of float32 logits", HEAD, ROWS, 2, {}, 0.01, True),
        ("us", "remask_scatter", {"batch": 64}, 7e-3, {}, 7, False),
        ("over launch and floor", "confidence", {"rows": 32}, 2.006, {}, 2.006 / 1.003, False),
        ("of read bandwidth", "confidence", ROWS, 1.25, {}, 0.8, False),
        (OF_BYTES, "confidence", ROWS, 1, {SOFTMAX: 2.85}, 0.95, True),
    ],
)  # fmt: skip
def test_figures(
    record: BenchRecord, what: str, op: str, sizes: dict, ms: float, peers: dict, figure: float,
    holds: bool,
) -> None:  # fmt: skip
    """The roof allows a millisecond; a hundredth of the float32 logits is allocated."""
    beside = [peer(name, 1e-3 * took) for name, took in peers.items()]
    row = op_row(op, sizes, 1e-3 * ms, READING, peers=beside, peak=4 * 2048)
    (found,) = [
        each
        for each in evaluate(replace(record, rows=[row]))
        if each.row is row and each.target.what == what
    ]
    assert found.figure == pytest.approx(figure) and found.holds is holds
