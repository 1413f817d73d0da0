"""python: right code passes, and whatever else a model may write fails alone."""

import os
import select
from pathlib import Path
from random import Random

import pytest

from dlm_core.tasks import Example, are_right, heldout, is_right, python_functions
from dlm_core.tasks.python_functions import ENDINGS, INPUTS, PROMPT, STEPS, run_right

SUM_OF_EVEN = Example(
    "python",
    PROMPT + "keep the even, return the sum",
    "def f(xs):\n    xs = [x for x in xs if x % 2 == 0]\n    return sum(xs)",
)


def test_every_step_and_ending_means_what_its_code_does() -> None:
    """The reference and the code are written apart; here each runs for each constant."""
    for words, (code, reference) in STEPS.items():
        for n in range(1, 10):
            for xs in INPUTS:
                ran = eval(code.replace("N", str(n)), {"xs": list(xs)})
                assert ran == reference(list(xs), n), (words, n, xs)
    for words, (code, reference) in ENDINGS.items():
        for xs in INPUTS:
            assert eval(code, {"xs": list(xs)}) == reference(list(xs)), (words, xs)


def test_inputs_tell_steps_and_endings_apart() -> None:
    """No step or constant does what another does, so that a near miss of a model is a miss."""
    done = {}
    for words, (_, reference) in STEPS.items():
        for n in range(1, 10) if "N" in words else [0]:
            done[words, n] = str([reference(list(xs), n) for xs in INPUTS])
    for words, (_, reference) in ENDINGS.items():
        done[words, 0] = str([reference(xs) for xs in INPUTS])
    del done["multiply each by N", 1]  # truly the list as it is
    assert len(set(done.values())) == len(done)


def test_answers_pass_and_share_one_child(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [python_functions.python(Random(seed)) for seed in range(120)]
    children = []
    run = python_functions._run
    monkeypatch.setattr(python_functions, "_run", lambda codes: children.append(1) or run(codes))
    assert all(are_right(examples, [example.answer for example in examples]))
    assert len(children) == 1
    # With the next example's code, which now and then does the same.
    swapped = [example.answer for example in examples[1:] + examples[:1]]
    assert sum(are_right(examples, swapped)) < 6


SAME = "def f(items):\n    print('hello')\n    return sum(i for i in items if not i % 2)"
WRONG = {
    "another result": "def f(xs):\n    return len(xs)",
    "empty": "",
    "not Python": "def f(xs:\n    return sum(xs)",
    "no f": "def g(xs):\n    return 0",
    "f is no function": "f = 3",
    "raises": "def f(xs):\n    return xs[0]",
    "a float": "def f(xs):\n    return float(sum(x for x in xs if x % 2 == 0))",
    "returns nothing": "def f(xs):\n    print(sum(x for x in xs if x % 2 == 0))",
    "not data": "def f(xs):\n    return f",
    "prints a result": "import sys, json\nprint(json.dumps([0] * 8))\nsys.exit(0)",
    "exits": "raise SystemExit(0)",
    "exits inside": "def f(xs):\n    import sys\n    sys.exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "endless loop": "def f(xs):\n    while True:\n        pass",
    "loop that catches all": (
        "def f(xs):\n    while True:\n        try:\n            f(xs)\n"
        "        except BaseException:\n            pass"
    ),
    "huge list": "def f(xs):\n    return [0] * 10**10",
    "huge answer": "def f(xs):\n    return 'x' * 10**6",
    "reads input": "def f(xs):\n    return int(input())",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "kills the child": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kills the group": "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "lone surrogate": "x = '\ud800'",
    "zero byte": "x = 0\0",
}


def test_what_is_wrong_fails_alone() -> None:
    codes = []
    for wrong in WRONG.values():
        codes += [wrong, SAME]
    passed = run_right([SUM_OF_EVEN] * len(codes), codes)
    assert dict(zip(WRONG, passed[::2], strict=True)) == dict.fromkeys(WRONG, False)
    assert passed[1::2] == [True] * len(WRONG), "other code that does the same passes"


def test_no_file_is_written_nor_environment_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLM_TEST_SECRET", "1")
    target = tmp_path / "written"
    target.touch()
    body = "return sum(x for x in xs if x % 2 == 0)"
    file = f"open({str(target)!r}, 'w')"
    writes = f"def f(xs):\n    with {file} as file:\n        file.write('x')\n    {body}"
    sees = f"import os\ndef f(xs):\n    assert 'DLM_TEST_SECRET' in os.environ\n    {body}"
    here = f"import os\ndef f(xs):\n    assert os.listdir() == []\n    {body}"
    assert run_right([SUM_OF_EVEN] * 3, [writes, sees, here]) == [False, False, True]
    assert target.read_bytes() == b""


def test_a_sleep_ends_and_leaves_no_process(tmp_path: Path) -> None:
    """Nor does a process live on that the code started, where it may start one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    code = (
        f"import os, time\ndef f(xs):\n    os.write(os.open({str(pipe)!r}, os.O_WRONLY), b'x')\n"
        "    os.fork()\n    time.sleep(1000)"
    )
    assert run_right([SUM_OF_EVEN], [code]) == [False]
    assert os.read(reader, 1) == b"x"
    ends, _, _ = select.select([reader], [], [], 5)
    assert ends and os.read(reader, 1) == b"", "a process of the code still holds the other side"
    os.close(reader)


def test_a_child_that_cannot_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "child.py"
    broken.write_text("raise SystemExit('no limits here')")
    monkeypatch.setattr(python_functions.python_child, "__file__", str(broken))
    with pytest.raises(RuntimeError, match="no limits here"):
        is_right(SUM_OF_EVEN, SUM_OF_EVEN.answer)


def test_no_description_is_one_constant_value() -> None:
    rng = Random(0)
    for example in (python_functions.python(rng) for _ in range(300)):
        steps, ending = python_functions._described(example.prompt)
        values = python_functions._returns(steps, ending)
        assert len({str(v) for v in values}) > 1, example


def test_other_tasks_are_compared_letter_for_letter() -> None:
    examples = [e for e in heldout(2, 0) if e.task != "python"]
    assert all(are_right(examples, [e.answer for e in examples]))
    assert not any(are_right(examples, [e.answer + " " for e in examples]))
