"""Targets on a record: which row each finds, what its figure is, and whether it holds."""

from dataclasses import replace

import pytest

from dlm_bench.cases import FAST, OTHER_CACHE
from dlm_bench.targets import TARGETS, Evaluated, evaluate
from dlm_kernels import Cost
from dlm_roofline.forward import STEP_NAMES
from dlm_roofline.records import BenchRecord, Row

from .conftest import op_row, peer


def of(record: BenchRecord, what: str, *rows: Row, **sizes: int) -> Evaluated:
    """The one target of these words and sizes, on a record with these rows."""
    found = evaluate(replace(record, rows=[*record.rows, *rows]))
    (one,) = [x for x in found if x.target.what == what and sizes.items() <= x.target.sizes.items()]
    return one


def test_every_target_is_another_and_without_its_row_has_no_verdict(record: BenchRecord) -> None:
    keys = [(t.name, t.what, tuple(t.sizes.items()), t.dtype, t.weights) for t in TARGETS]
    assert len(set(keys)) == len(keys) > 40
    for each in evaluate(replace(record, rows=[])):
        assert (each.row, each.figure, each.holds) == (None, None, None)


def test_a_step_is_held_to_its_floor(record: BenchRecord) -> None:
    found = [x for x in evaluate(record) if x.target.name == STEP_NAMES["denoise"] and x.row]
    over = {x.target.sizes["batch"]: x for x in found if x.target.what == "over its floor"}
    assert over.keys() == {1, 8, 64}
    for each in over.values():
        assert each.figure == pytest.approx(2.0) and each.holds is False
    int8 = of(record, "16-bit step over int8")
    assert 1 < int8.figure < 2 and int8.holds is (int8.figure >= 1.7)


FLOOR = Cost(8e6, 4e9)  # 1 ms of reading at 4 TB/s


@pytest.mark.parametrize(
    ("what", "row", "figure", "holds"),
    [
        (
            "of its floor's rate",
            op_row("block_attention", {"batch": 64, "context": 32768}, 1.25e-3, FLOOR),
            0.8,
            True,
        ),
        (
            "best peer's time over ours",
            op_row("block_attention", {"batch": 64, "context": 32768}, 2e-3, FLOOR,
                   peers=[peer("SDPA flash", 3e-3), peer("SDPA math", 9e-3),
                          peer("cat + SDPA flash", 1e-3), peer(FAST, 1e-3)]),
            3.0,
            True,
        ),
        (
            "over torch's product alone",
            op_row("lm_head_confidence", {"rows": 2048, "vocab": 100}, 2e-3, FLOOR,
                   peers=[peer("product alone", 1e-3), peer(FAST, 1.1e-3)]),
            1.1,
            False,
        ),
        (
            "peak, of float32 logits",
            op_row("lm_head_confidence", {"rows": 2048, "vocab": 100}, 2e-3, FLOOR,
                   peak=round(0.01 * 4 * 2048 * 100)),
            0.01,
            True,
        ),
        ("us", op_row("remask_scatter", {"batch": 64}, 7e-6, Cost(1, 1)), 7.0, False),
        (
            "over launch and floor",
            op_row("confidence", {"rows": 32}, 2.006e-3, FLOOR),
            2.006 / 1.003,
            False,
        ),
        (
            "of read bandwidth",
            op_row("confidence", {"rows": 2048}, 1.25e-3, FLOOR),
            0.8,
            False,
        ),
        (
            "of the ratio of bytes to softmax, gather",
            op_row("confidence", {"rows": 2048}, 1e-3, FLOOR,
                   peers=[peer("softmax, gather", 2.85e-3)]),
            0.95,
            True,
        ),
        (
            "16-bit cache over ours",
            op_row("block_attention, float8 cache", {"batch": 64, "context": 32768}, 2e-3, FLOOR,
                   peers=[peer(OTHER_CACHE, 3e-3), peer(FAST, 1e-3)]),
            3.0,
            True,
        ),
    ],
)  # fmt: skip
def test_figures(record: BenchRecord, what: str, row: Row, figure: float, holds: bool) -> None:
    sizes = {name: size for name, size in row.shape.items() if name != "vocab"}
    found = [
        each
        for each in evaluate(replace(record, rows=[row]))
        if each.row is row and each.target.what == what and each.target.sizes == sizes
    ]
    assert [each.figure for each in found] == [pytest.approx(figure)]
    assert found[0].holds is holds
