"""Pictures of how tokens came: what a cell says, what fits, files that are whole or not there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_core import Model, Rule, StepEvent, generate, infill, refine

pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dlm_core import block_trace
from dlm_core.block_trace import (
    EARLIER,
    EDITED,
    FORMATS,
    GIVEN,
    MAX_HEIGHT,
    MAX_WIDTH,
    NEW,
    OPEN,
    REMASKED,
    RIGHT_DRAFT,
    VERIFIER,
    Trace,
    picture,
    save_picture,
    trace_of_cycles,
    trace_of_steps,
)  # fmt: skip

MASK = 3


def label(token: int) -> str:
    return "" if token == MASK else f"t{token}"


def event(block: int = 0, step: int = 0, **fields: list) -> StepEvent:
    lists = ("tokens", "committed", "confidences", "edited", "remasked", "undecided")
    return StepEvent(block, step, **(dict.fromkeys(lists, []) | fields))


def kinds(trace: Trace, panel: int = 0) -> list[list[str]]:
    return [[cell.kind for cell in cells] for _, cells in trace.panels[panel].rows]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


# --- what a cell says

STEPS = [
    event(tokens=[9, 7, MASK, 8], committed=[1, 3], confidences=[0.9, 0.2], undecided=[2]),
    event(0, 1, tokens=[9, 6, 5, MASK], committed=[1, 2], confidences=[0.8, 1.0], edited=[1],
          remasked=[3], undecided=[3]),
    event(0, 2, tokens=[9, 6, 5, 4], committed=[3], confidences=[0.5]),
    event(1, 0, tokens=[2, 4], committed=[0, 1], confidences=[0.7, 0.7]),
]  # fmt: skip


def test_a_row_is_what_stands_after_a_step() -> None:
    trace = trace_of_steps(STEPS, label)
    assert kinds(trace) == [
        [GIVEN, NEW, OPEN, NEW],
        [GIVEN, EDITED, NEW, REMASKED],
        [GIVEN, EARLIER, EARLIER, NEW],
    ]
    assert kinds(trace, 1) == [[NEW, NEW]]
    assert [name for name, _ in trace.panels[0].rows] == ["1", "2", "3"]
    assert [panel.first for panel in trace.panels] == [0, 4]
    labels = [[cell.label for cell in cells] for _, cells in trace.panels[0].rows]
    assert labels == [["t9", "t7", "", "t8"], ["t9", "t6", "t5", ""], ["t9", "t6", "t5", "t4"]]


def test_a_colour_is_that_of_the_last_commit() -> None:
    """It stays that of the commit in later rows, and rises with the confidence."""
    rows = [cells for _, cells in trace_of_steps(STEPS, label).panels[0].rows]
    assert rows[0][1].color != rows[1][1].color == rows[2][1].color
    assert rows[0][3].color != rows[2][3].color
    assert rows[0][0].color is None
    (sure,) = trace_of_steps([event(tokens=[5], committed=[0], confidences=[1.0])], label).panels
    assert rows[1][2].color == sure.rows[0][1][0].color
    brightness = [
        sum(to_rgb(color)) for color in (rows[0][3].color, rows[0][1].color, rows[1][2].color)
    ]
    assert brightness == sorted(brightness) and len(set(brightness)) == 3


def test_entropies_have_a_scale_of_their_own() -> None:
    steps = [event(tokens=[5, 6], committed=[0, 1], confidences=[-2.5, -0.0])]
    trace = trace_of_steps(steps, label, "entropy")
    assert (trace.scale.vmin, trace.scale.vmax) == (-2.5, 0)
    assert trace.measure == "negative entropy, nats"
    surest = trace_of_steps([event(tokens=[5], committed=[0], confidences=[1.0])], label)
    assert trace.panels[0].rows[0][1][1].color == surest.panels[0].rows[0][1][0].color


RULE = Rule(edit_threshold=0.5, edit_steps=8, remask_below=0.2, top_k=2)


@pytest.mark.parametrize(
    ("run", "arguments", "options", "given", "revised"),
    [
        (generate, (16, "diffusion"), {}, True, False),
        (infill, (4, [45, 49]), {}, True, False),
        (refine, ([5, 60, 7, 33, 12, 50],), {"rule": RULE}, False, True),
        (generate, (8, "diffusion"), {"rule": "diffusion_gemma"}, False, True),
    ],
    ids=["diffusion", "infill", "refine", "renoise"],
)
def test_a_real_run_is_drawn_as_it_was(
    run: Callable, arguments: tuple, options: dict, given: bool, revised: bool, model: Model
) -> None:
    """With what each mode has beside the new and the old: seeds, a text after a gap, edits."""
    events: list[StepEvent] = []
    run(model, [59, 62, 65, 2, 13, 17, 21, 25], *arguments, **options, on_step=events.append)
    panels = trace_of_steps(events, label).panels
    rows = [cells for panel in panels for _, cells in panel.rows]
    for row, step in zip(rows, events, strict=True):
        assert [cell.label for cell in row] == [label(token) for token in step.tokens]
        undecided = [i for i, cell in enumerate(row) if cell.kind in (OPEN, REMASKED)]
        assert undecided == step.undecided
        new = [i for i, cell in enumerate(row) if cell.kind in (NEW, EDITED)]
        assert new == step.committed
    seen = {cell.kind for row in rows for cell in row}
    assert {NEW, OPEN} <= seen
    assert (GIVEN in seen) == given
    assert ({EDITED, REMASKED} <= seen) == revised


# --- cycles


@pytest.mark.parametrize(
    ("mode", "own", "first"),
    [("linear_spec", [3, 4, 6], [GIVEN, NEW, NEW, NEW]), ("quadratic_spec", [0, 3, 4], [NEW] * 3)],
)
def test_cycles_tell_right_drafts_from_the_verifier_s_own(
    mode: str, own: list[int], first: list[str]
) -> None:
    """The last cycle emits one more than was asked for, or an EOS cut it."""
    accepted = [3, 1, 2 + (mode == "quadratic_spec") + 1]
    trace = trace_of_cycles(list(range(4, 11)), accepted, mode, label)
    (panel,) = trace.panels
    last = panel.rows[-1][1]
    assert [name for name, _ in panel.rows] == ["1", "2", "3"]
    assert [cell.label for cell in last] == [f"t{i}" for i in range(4, 11)]
    assert kinds(trace)[0] == first + [OPEN] * (7 - len(first))
    assert all(cell.label == "" for cell in panel.rows[0][1] if cell.kind == OPEN)
    n = len(first)
    assert kinds(trace)[1][:n] == [GIVEN if kind == GIVEN else EARLIER for kind in first]
    assert kinds(trace)[1][n] == NEW
    expected = [VERIFIER if i in own else RIGHT_DRAFT for i in range(7)]
    if mode == "linear_spec":
        expected[0], expected[6] = None, RIGHT_DRAFT  # the third cycle's own token was cut
    assert [cell.color for cell in last] == expected


@pytest.mark.parametrize("mode", ["linear_spec", "quadratic_spec"])
def test_real_cycles_add_up_to_the_tokens(mode: str, model: Model) -> None:
    result = generate(model, [8, 11, 14, 17], 21, mode)
    (panel,) = trace_of_cycles(result.tokens, result.accepted, mode, label).panels
    assert len(panel.rows) == len(result.accepted)
    assert OPEN not in [cell.kind for cell in panel.rows[-1][1]]
    n_new = [sum(cell.kind == NEW for cell in cells) for _, cells in panel.rows]
    assert n_new[:-1] == result.accepted[:-1]
    assert sum(n_new) == len(result.tokens) - (mode == "linear_spec")


def test_an_answer_without_a_cycle_or_a_step_is_a_picture_too() -> None:
    for trace in (trace_of_cycles([5], [], "linear_spec", label), trace_of_steps([], label)):
        assert texts(picture(trace, "1 token in 1 forward", ""))[0] == "1 token in 1 forward"


# --- the picture


def test_everything_is_written_once() -> None:
    trace = trace_of_steps(STEPS, lambda token: "" if token == MASK else f"${token}$")
    figure = picture(trace, "title", "details")
    written = texts(figure)
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)
    assert written.count("$9$") == 3 and written.count("$6$") == 2 and written.count("×") == 2
    kinds = {GIVEN, NEW, EDITED, EARLIER, OPEN, REMASKED}
    assert {"title", "details", "block 1", "block 2", "probability", "step", *kinds} <= {*written}


def luminance(color: object) -> float:
    """WCAG 2 relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_confidence_can_be_read() -> None:
    for share in range(101):
        face = block_trace._shade(share / 100)
        for color in (face, block_trace._paler(face)):
            dark, light = sorted(map(luminance, (block_trace.ink_on(color), color)))
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def steps_of_blocks(n_blocks: int, length: int, text: Callable[[int], str] = str) -> Trace:
    """Blocks that fill from the left, one position a step."""
    events = []
    for block in range(n_blocks):
        for step in range(length):
            tokens = [4] * (step + 1) + [MASK] * (length - step - 1)
            left = [i for i, token in enumerate(tokens) if token == MASK]
            done = {"tokens": tokens, "committed": [step], "confidences": [0.9]}
            events.append(event(block, step, **done, undecided=left))
    return trace_of_steps(events, lambda token: "" if token == MASK else text(token))


def test_a_wide_block_goes_on_below() -> None:
    figure = picture(steps_of_blocks(1, 30, lambda token: "internationalization"), "", "")
    assert figure.get_figwidth() <= MAX_WIDTH
    written = texts(figure)
    assert written.count("block 1") == 2 and {"0", "29", "internation…"} <= {*written}


@pytest.mark.parametrize("height", [4.0, 6.0], ids=["part-of-a-block", "whole-blocks"])
def test_what_does_not_fit_is_counted(height: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_trace, "MAX_HEIGHT", height)
    figure = picture(steps_of_blocks(12, 10), "", "")
    (note,) = (text for text in texts(figure) if "rows fit" in text)
    names = [t for t in figure.axes[0].texts if t.get_ha() == "right" and t.get_fontsize() == 8]
    drawn = sum(t.get_text().isdigit() for t in names) - 1  # the scale's end is one too
    assert note.startswith(f"{drawn} of 120 rows fit")
    assert 0 < drawn < 120
    assert figure.get_figheight() <= height
    assert MAX_HEIGHT * 130 < 5000  # pixels


@pytest.mark.parametrize("format_", FORMATS)
def test_the_file_is_written_in_its_format(format_: str, tmp_path: Path) -> None:
    path = tmp_path / f"trace.{format_.upper()}"
    trace = trace_of_steps(STEPS, lambda token: "好$" if token == 9 else str(token))
    save_picture(trace, path, "title", "details")
    written = path.read_bytes()
    assert written.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[format_])
    assert len(written) > 5000


def test_the_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_off(figure: Figure, file: Path, **options) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", breaks_off)
    with pytest.raises(OSError, match="No space left"):
        save_picture(trace_of_steps(STEPS, label), tmp_path / "trace.png", "title", "details")
    assert not list(tmp_path.iterdir())
