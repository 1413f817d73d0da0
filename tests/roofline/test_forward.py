"""A forward is one that the model can run, and knows its rows and its parts."""

from dataclasses import replace

import pytest

from dlm_roofline.forward import (
    DECODE,
    DENOISE,
    DRAFT,
    KINDS,
    LINEAR,
    QUADRATIC,
    STEP_NAMES,
    VERIFY,
    Forward,
    parts_of,
)  # fmt: skip

BLOCKS = {DECODE: 1, DENOISE: 32, DRAFT: 32, VERIFY: 32, QUADRATIC: 6, LINEAR: 32}
STEP = Forward(DENOISE, 3, 32, 0, "float32")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "prefill"}, "kind is 'prefill'; it must be one of decode, denoise, draft"),
        ({"dtype": "float64"}, "dtype is 'float64'; it must be one of bfloat16, float16, float32"),
        ({"weights": "int2"}, "weights is 'int2'; it must be null or one of fp8, int8, int4"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"block": 0}, "block is 0; it must be at least 1"),
        ({"context": -1}, "context is -1; it must be at least 0"),
        ({"kind": DECODE, "block": 2}, "block is 2; it must be 1 in decode"),
        ({"kind": DRAFT, "block": 1}, "block is 1; it must be at least 2 in draft"),
        ({"kind": LINEAR, "block": 1}, "block is 1; it must be at least 2 in linear"),
        ({"kind": QUADRATIC, "block": 2}, r"block is 2; it must be k \(k \+ 1\) of a k from 2 on"),
        ({"kind": QUADRATIC, "block": 7}, r"block is 7; it must be k \(k \+ 1\) of a k from 2 on"),
    ],
    ids=lambda x: " ".join(f"{k} {v}" for k, v in x.items()) if isinstance(x, dict) else "",
)
def test_what_no_model_runs_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(STEP, **change)


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_kind(kind: str) -> None:
    forward = replace(STEP, kind=kind, block=BLOCKS[kind])
    assert forward.rows == 3 * BLOCKS[kind]
    assert forward.causal == (kind in (DECODE, VERIFY, QUADRATIC))
    assert forward.draft_groups == ((2, 3) if kind == QUADRATIC else None)
    assert kind in STEP_NAMES
    parts = (DRAFT, VERIFY) if kind == LINEAR else (kind,)
    assert parts_of(forward) == [replace(forward, kind=part) for part in parts]


def test_what_is_quantised_is_said() -> None:
    assert STEP.in_few_bits == ""
    both = replace(STEP, weights="int4", float8_cache=True)
    assert both.in_few_bits == ", int4 weights, float8 cache"
