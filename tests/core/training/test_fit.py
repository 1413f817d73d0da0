"""The loop alone: schedule, running mean, clipping, and what is not finite."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dlm_core.training.fit import HISTORY, Schedule, StepReport, fit, read_history
from dlm_core.training.loss import Loss
from dlm_core.training.rows import Document, Rows, pack

SCHEDULE = Schedule(
    steps=40, learning_rate=0.1, matrix_learning_rate=0.1, warmup=4, decay_share=0.5,
    weight_decay=0.0, max_gradient_norm=1.0, ema_decay=0.5, save_every=100,
)  # fmt: skip


class Point(nn.Module):
    """Learns to stand at 3."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2))

    def loss(self, rows: Rows) -> Loss:
        one = torch.ones(())
        return Loss((self.place - 3).square().sum(), one, torch.zeros(()), torch.zeros(()))


def rows(step: int) -> Rows:
    return pack([Document([2, 5, 1])], None, 4, 1, None)


def test_rates_warm_up_stay_and_fall_to_zero() -> None:
    factors = [SCHEDULE.factor(step) for step in range(40)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[3:21] == [1.0] * 18
    assert factors[21:] == pytest.approx([(40 - step) / 20 for step in range(21, 40)])


def test_the_mean_of_the_weights_is_what_stays(tmp_path: Path) -> None:
    model, reports, places = Point(), [], []

    def report(step: StepReport) -> None:
        reports.append(step)
        places.append(model.place.detach().clone())

    fit(model, model.loss, rows, SCHEDULE, tmp_path, report)
    mean = torch.zeros(2)
    for step, place in enumerate(places, start=1):
        mean = mean.lerp(place, 1 - min(0.5, (1 + step) / (10 + step)))
    torch.testing.assert_close(model.place.detach(), mean)
    assert not torch.equal(model.place.detach(), places[-1])
    assert reports[-1].ar < 0.05 * reports[0].ar
    assert [line["step"] for line in read_history(tmp_path / HISTORY)] == list(range(1, 41))
    assert reports[0].gradient_norm == pytest.approx(6 * 2**0.5)
    assert reports[0].diffusion is None


def test_a_gradient_that_is_not_finite_is_not_taken(tmp_path: Path) -> None:
    model = Point()

    def loss(rows: Rows) -> Loss:
        result = model.loss(rows)
        return result._replace(ar=result.ar * float("nan"))

    with pytest.raises(FloatingPointError, match="the gradient of step 1 is not finite"):
        fit(model, loss, rows, SCHEDULE, tmp_path, lambda step: None)
    assert torch.equal(model.place.detach(), torch.zeros(2))


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / HISTORY).write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_history(tmp_path / HISTORY) == [{"step": 1}, {"step": 2}]
    assert read_history(tmp_path / "none") == []
