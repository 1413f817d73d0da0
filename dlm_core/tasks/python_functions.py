"""Short Python functions over a list of integers, right if they run right.

write f(xs): keep the even, square each, return the sum

    def f(xs):
        xs = [x for x in xs if x % 2 == 0]
        xs = [x * x for x in xs]
        return sum(xs)

Generated code is never run in this process. `run_right` hands it to python_child.py in a Python of
its own with no environment, no site packages, an empty folder and no standard input, which forks
once for each function under limits of CPU time, wall time, memory and file size. The expected
values stay here: the child reports what the function returned. This stops mistakes (a loop without
end, a huge list, an early exit, a stray write); it is no sandbox against hostile code, which may
empty or remove what its user may.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from random import Random

from . import python_child
from .example import Example
from .python_child import WALL_SECONDS

Step = Callable[[list[int], int], list[int]]

# Words and code of each step, with N for its constant of 1 to 9, and what it does.
STEPS: dict[str, tuple[str, Step]] = {
    "keep the even": ("[x for x in xs if x % 2 == 0]", lambda xs, n: [x for x in xs if not x & 1]),
    "keep the odd": ("[x for x in xs if x % 2 == 1]", lambda xs, n: [x for x in xs if x & 1]),
    "keep the positive": ("[x for x in xs if x > 0]", lambda xs, n: [x for x in xs if x > 0]),
    "keep the negative": ("[x for x in xs if x < 0]", lambda xs, n: [x for x in xs if x < 0]),
    "keep those above N": ("[x for x in xs if x > N]", lambda xs, n: [x for x in xs if x > n]),
    "keep those below N": ("[x for x in xs if x < N]", lambda xs, n: [x for x in xs if x < n]),
    "square each": ("[x * x for x in xs]", lambda xs, n: [x**2 for x in xs]),
    "negate each": ("[-x for x in xs]", lambda xs, n: [0 - x for x in xs]),
    "add N to each": ("[x + N for x in xs]", lambda xs, n: [x + n for x in xs]),
    "multiply each by N": ("[x * N for x in xs]", lambda xs, n: [x * n for x in xs]),
    "take the first N": ("xs[:N]", lambda xs, n: xs[:n]),
    "drop the first N": ("xs[N:]", lambda xs, n: xs[n:]),
    "reverse the list": ("xs[::-1]", lambda xs, n: list(reversed(xs))),
    "sort the list": ("sorted(xs)", lambda xs, n: sorted(xs)),
}
ENDINGS: dict[str, tuple[str, Callable[[list[int]], object]]] = {
    "return the list": ("xs", lambda xs: xs),
    "return the sum": ("sum(xs)", sum),
    "return the count": ("len(xs)", len),
    "return the largest or 0": ("max(xs, default=0)", lambda xs: max(xs) if xs else 0),
    "return the smallest or 0": ("min(xs, default=0)", lambda xs: min(xs) if xs else 0),
}
PROMPT = "write f(xs): "

_lists = Random(0)
INPUTS: list[list[int]] = [[], [4], [-7]] + [
    [_lists.randint(-12, 12) for _ in range(length)] for length in (3, 6, 9, 12, 16)
]
START_SECONDS = 30  # more than a child takes to start on a busy machine


def _returns(steps: Sequence[tuple[str, int]], ending: str) -> list[object]:
    """What the described function returns for each of INPUTS."""
    values = []
    for xs in INPUTS:
        for words, n in steps:
            xs = STEPS[words][1](list(xs), n)
        values.append(ENDINGS[ending][1](xs))
    return values


def _described(prompt: str) -> tuple[list[tuple[str, int]], str]:
    """The steps with their constants, and the ending, that a prompt describes."""
    *phrases, ending = prompt.removeprefix(PROMPT).split(", ")
    steps = []
    for phrase in phrases:
        constant = re.search(r"\d", phrase)
        steps.append((re.sub(r"\d", "N", phrase), int(constant[0]) if constant else 0))
    return steps, ending


def python(rng: Random) -> Example:
    """One to three steps and an ending, drawn again while all INPUTS give the same value."""
    while True:
        steps = [(rng.choice(list(STEPS)), rng.randint(1, 9)) for _ in range(rng.randint(1, 3))]
        ending = rng.choice(list(ENDINGS))
        values = _returns(steps, ending)
        if any(value != values[-1] for value in values[1:]):
            break
    phrases = [words.replace("N", str(n)) for words, n in steps]
    lines = [f"    xs = {STEPS[words][0].replace('N', str(n))}" for words, n in steps]
    code = ["def f(xs):", *lines, f"    return {ENDINGS[ending][0]}"]
    return Example("python", PROMPT + ", ".join([*phrases, ending]), "\n".join(code))


def _run(codes: Sequence[str]) -> list[object]:
    """What each code's f returns for INPUTS, None where it fails; shorter if the child ended."""
    seconds = START_SECONDS + len(codes) * (WALL_SECONDS + 1)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", python_child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={},
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(json.dumps([list(codes), INPUTS]), seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
        finally:
            # What the codes started is in the child's group, and may have outlived it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode > 0:  # its own fault: code can end it by a signal only
        raise RuntimeError(f"{python_child.__file__} failed: {errors.strip()}")
    return [json.loads(line) for line in output.splitlines()]


def run_right(examples: Sequence[Example], codes: Sequence[str]) -> list[bool]:
    """Whether each code defines an f that returns what its example's prompt describes.

    All share one child process; code that ends it fails alone, and the rest go to a new one.
    """
    returned: list[object] = []
    while len(returned) < len(codes):
        returned += _run(codes[len(returned) :])
        if len(returned) < len(codes):
            returned.append(None)
    # As JSON, so that True is not 1 and 4.0 not 4.
    return [
        json.dumps(values) == json.dumps(_returns(*_described(example.prompt)))
        for example, values in zip(examples, returned, strict=True)
    ]
