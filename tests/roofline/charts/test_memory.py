"""The picture of memory: its bars are the predictions, and the device's memory is a line."""

from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
from dlm_roofline.charts.chart import mark_id
from dlm_roofline.charts.memory import (
    BATCHES,
    CONTEXTS,
    HEADER,
    NAME,
    memory_chart,
)
from dlm_roofline.forward import DENOISE, Forward
from dlm_roofline.memory import peak_memory
from dlm_roofline.records import Device, Record

PARTS = ("weights", "kv", "activations", "more_if_sampled")


@pytest.fixture
def on_h200(record: Record) -> Record:
    return replace(record, device=Device("cuda", "NVIDIA H200", {"memory": "141 GiB"}))


def test_every_bar_is_its_prediction(on_h200: Record) -> None:
    chart = memory_chart(on_h200)
    (config,) = on_h200.models.values()
    found = {}
    for line in (dict(zip(HEADER, row, strict=True)) for row in chart.rows):
        sizes = tuple(int(line[name]) for name in ("batch", "context"))
        found[*sizes, line["part"]] = int(line["predicted_bytes"])
        assert line["block"] == "32" and line["device_bytes"] == str(141 * 2**30)
    assert len(found) == len(chart.rows) == len(BATCHES) * len(CONTEXTS) * len(PARTS)
    for batch in BATCHES:
        for context in CONTEXTS:
            forward = Forward(DENOISE, batch, 32, context, "bfloat16")
            greedy = peak_memory(config, forward, context + 32)
            sampled = peak_memory(config, forward, context + 32, sampled=True)
            for part in PARTS[:-1]:
                assert found[batch, context, part] == getattr(greedy, part)
            assert found[batch, context, PARTS[-1]] == sampled.total - greedy.total


def test_marks_are_stacked_and_differ_without_colour(on_h200: Record) -> None:
    chart = memory_chart(on_h200)
    bars = [bar for axes in chart.figure.axes for bar in axes.patches]
    assert [bar.get_gid() for bar in bars] == [mark_id(NAME, i) for i in range(len(chart.rows))]
    for first in range(0, len(bars), 4):
        stack, bottom = bars[first : first + 4], 0.0
        for bar, row in zip(stack, chart.rows[first : first + 4], strict=True):
            size = int(row[HEADER.index("predicted_bytes")]) / 2**30
            assert bar.get_y() == pytest.approx(bottom) and bar.get_height() == pytest.approx(size)
            bottom += size
        assert len({bar.get_hatch() for bar in stack}) == 4


def test_the_device_is_a_line_and_higher_bars_are_cut(on_h200: Record) -> None:
    chart = memory_chart(on_h200)
    for axes in chart.figure.axes:
        assert 141 in {line.get_ydata()[0] for line in axes.lines}
        assert axes.get_ylim() == (0, pytest.approx(1.25 * 141))
    arrows = [[t.get_text() for t in axes.texts].count("↑") for axes in chart.figure.axes]
    assert arrows == [0, 1, 2]  # 256 requests behind 8k tokens, 64 and 256 behind 64k
    # 64 requests behind 1k: 16 GiB of weights, 8.5 of keys and values; 12 more of logits.
    labels = chart.figure.axes[0].get_xticklabels()
    assert labels[BATCHES.index(64)].get_text() == "64\n25\n37"
    (legend,) = chart.figure.legends
    assert "the device's 141 GiB" in [text.get_text() for text in legend.texts]


def test_small_models_have_small_units_and_the_contexts_that_fit(on_h200: Record) -> None:
    (name,) = on_h200.models
    small = replace(on_h200.models[name], num_hidden_layers=1, max_position_embeddings=4096)
    chart = memory_chart(replace(on_h200, models={name: small}, backend="torch"))
    (axes,) = chart.figure.axes
    assert axes.get_title(loc="left") == "context 1,024"
    texts = [text.get_text() for text in (*chart.figure.texts, *chart.figure.legends[0].texts)]
    assert "the device's 141 GiB, above the scale" in texts
    tiny = replace(
        small, max_position_embeddings=256, vocab_size=128, hidden_size=64, intermediate_size=64
    )
    (axes,) = memory_chart(replace(on_h200, models={name: tiny})).figure.axes
    assert axes.get_title(loc="left") == "context 224" and axes.get_ylabel() == "MiB"


def test_plain_torch_has_logits_that_triton_has_not(on_h200: Record) -> None:
    of_torch = memory_chart(replace(on_h200, backend="torch"))
    assert {row[0] for row in of_torch.rows} == {*PARTS, "logits"}
    labels = [text.get_text() for text in of_torch.figure.legends[0].texts]
    assert "logits" in labels
    assert len({patch.get_hatch() for patch in of_torch.figure.legends[0].get_patches()}) == 5


def test_a_device_that_does_not_say(record: Record) -> None:
    chart = memory_chart(record)
    assert {row[-1] for row in chart.rows} == {""}
    assert not [line for axes in chart.figure.axes for line in axes.lines]
    assert memory_chart(replace(record, rows=[])) is None
