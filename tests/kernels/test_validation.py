"""Every error a caller can make: its type, the argument and value it names, and nothing changed."""

import math
from collections.abc import Callable

import pytest
import torch
from numeric import unchanged

from dlm_kernels import BlockState, block_attention, confidence, new_error_word, remask_scatter

MASK, EOS = 9, 2
F64, F16, I64, I32 = torch.float64, torch.float16, torch.int64, torch.int32


def expect(call: Callable, arguments: dict, exception: type[Exception], message: str) -> None:
    """`call` raises exactly this and leaves every tensor argument as it was."""
    values = dict(arguments)
    if isinstance(values.get("state"), BlockState):
        values |= values.pop("state")._asdict()
    tensors = {
        name: value
        for name, value in values.items()
        if isinstance(value, torch.Tensor) and not value.is_meta
    }
    with unchanged(**tensors), pytest.raises(exception, match=message) as raised:
        call(**arguments)
    assert raised.type is exception


def ints(*shape: int, dtype: torch.dtype = I32, value: int = 0) -> torch.Tensor:
    return torch.full(shape, value, dtype=dtype)


# --- confidence


def confidence_arguments() -> dict:
    return {
        "logits": torch.zeros(3, 8),
        "tokens": ints(3, value=MASK),
        "mask_id": MASK,
        "banned": ints(2),
        "error": new_error_word("cpu"),
    }


CONFIDENCE_ERRORS = {
    "logits-no-tensor": ({"logits": [[0.0]]}, TypeError, "logits is a list; .* torch.Tensor"),
    "logits-1d": ({"logits": torch.zeros(5)}, ValueError, r"logits .*\[5\]; .*\[rows, vocab\]"),
    "logits-3d": ({"logits": torch.zeros(1, 3, 8)}, ValueError, r"logits has shape \[1, 3, 8\]"),
    "logits-float64": ({"logits": torch.zeros(3, 8, dtype=F64)}, TypeError, "logits is torch.floa"),
    "logits-integer": ({"logits": ints(3, 8)}, TypeError, "logits is torch.int32"),
    "logits-by-column": ({"logits": torch.zeros(8, 3).T}, ValueError, "logits has stride 3"),
    "no-vocabulary": ({"logits": torch.zeros(3, 0)}, ValueError, "logits has a vocabulary of 0"),
    "tokens-alone": ({"mask_id": None}, ValueError, "mask_id is None; tokens and mask_id"),
    "mask-id-alone": ({"tokens": None}, ValueError, "tokens is None; tokens and mask_id"),
    "tokens-too-few": ({"tokens": ints(2)}, ValueError, r"tokens has shape \[2\]; .*\[3\]"),
    "tokens-2d": ({"tokens": ints(3, 1)}, ValueError, r"tokens has shape \[3, 1\]"),
    "tokens-float": ({"tokens": torch.zeros(3)}, TypeError, "tokens is torch.float32; .*int32"),
    "tokens-strided": ({"tokens": ints(6)[::2]}, ValueError, "tokens has stride 2"),
    "tokens-elsewhere": (
        {"tokens": torch.zeros(3, dtype=I32, device="meta")},
        ValueError,
        "tokens is on meta; it must be on cpu",
    ),
    "mask-id-float": ({"mask_id": 9.0}, TypeError, "mask_id is 9.0; it must be an int"),
    "mask-id-bool": ({"mask_id": True}, TypeError, "mask_id is True"),
    "mask-id-negative": ({"mask_id": -1}, ValueError, "mask_id is -1; .*0"),
    "mask-id-too-large": ({"mask_id": 2**31}, ValueError, "mask_id is 2147483648"),
    "entropy-text": ({"entropy": "yes"}, TypeError, "entropy is 'yes'; it must be a bool"),
    "margin-none": ({"margin": None}, TypeError, "margin is None; it must be a bool"),
    "banned-list": ({"banned": [1]}, TypeError, "banned is a list"),
    "banned-int64": ({"banned": ints(2, dtype=I64)}, TypeError, "banned is torch.int64; .*int32"),
    "banned-2d": ({"banned": ints(1, 2)}, ValueError, r"banned has shape \[1, 2\]"),
    "banned-17": ({"banned": ints(17)}, ValueError, "banned holds 17 ids; at most 16"),
    "banned-strided": ({"banned": ints(4)[::2]}, ValueError, "banned has stride 2"),
    "error-int64": ({"error": ints(1, dtype=I64)}, TypeError, "error is torch.int64; .*int32"),
    "error-two-words": ({"error": ints(2)}, ValueError, r"error has shape \[2\]; .*\[1\]"),
    "error-number": ({"error": 0}, TypeError, "error is a int"),
}


@pytest.mark.parametrize(
    ("change", "exception", "message"), CONFIDENCE_ERRORS.values(), ids=list(CONFIDENCE_ERRORS)
)
def test_confidence_refuses(change: dict, exception: type[Exception], message: str) -> None:
    confidence(**confidence_arguments())
    expect(confidence, confidence_arguments() | change, exception, message)


# --- block_attention


def attention_arguments() -> dict:
    """A block of 4 queries of 6 heads over 2 KV heads, in a cache of 20."""
    return {
        "q": torch.zeros(3, 4, 6, 16),
        "k_cache": torch.zeros(3, 20, 2, 16),
        "v_cache": torch.zeros(3, 20, 2, 16),
        "context_lens": ints(3),
        "k": torch.zeros(3, 4, 2, 16),
        "v": torch.zeros(3, 4, 2, 16),
        "error": new_error_word("cpu"),
    }


CAUSAL = {"k": None, "v": None}
ATTENTION_ERRORS = {
    "q-no-tensor": ({"q": None}, TypeError, "q is a NoneType"),
    "q-3d": ({"q": torch.zeros(4, 6, 16)}, ValueError, r"q has shape \[4, 6, 16\]; .*block"),
    "q-float64": ({"q": torch.zeros(3, 4, 6, 16, dtype=F64)}, TypeError, "q is torch.float64"),
    "q-strided": (
        {"q": torch.zeros(3, 4, 6, 32)[..., ::2]}, ValueError, "q has stride 2 in its last",
    ),
    "block-0": ({"q": torch.zeros(3, 0, 6, 16)}, ValueError, "q has a block of 0 .*256"),
    "block-257": ({"q": torch.zeros(3, 257, 6, 16)}, ValueError, "q has a block of 257"),
    "head-dim-8": ({"q": torch.zeros(3, 4, 6, 8)}, ValueError, "q has head_dim 8; .*16 to 256"),
    "head-dim-48": ({"q": torch.zeros(3, 4, 6, 48)}, ValueError, "q has head_dim 48"),
    "head-dim-512": ({"q": torch.zeros(3, 4, 6, 512)}, ValueError, "q has head_dim 512"),
    "cache-of-another-batch": (
        {"k_cache": torch.zeros(2, 20, 2, 16)}, ValueError, r"k_cache has shape \[2, 20, 2, 16\]",
    ),
    "cache-of-another-head-dim": (
        {"k_cache": torch.zeros(3, 20, 2, 32)}, ValueError, r"k_cache has shape \[3, 20, 2, 32\]",
    ),
    "cache-float16": (
        {"k_cache": torch.zeros(3, 20, 2, 16, dtype=F16)}, TypeError, "k_cache is torch.float16",
    ),
    "cache-elsewhere": (
        {"k_cache": torch.zeros(3, 20, 2, 16, device="meta")}, ValueError, "k_cache is on meta",
    ),
    "cache-strided": (
        {"k_cache": torch.zeros(3, 20, 16, 2).mT}, ValueError, "k_cache has stride 2",
    ),
    "values-shorter": (
        {"v_cache": torch.zeros(3, 19, 2, 16)}, ValueError, r"v_cache has shape .*\[3, 20, 2, 16\]",
    ),
    "values-strided": (
        {"v_cache": torch.zeros(3, 20, 16, 2).mT}, ValueError, "v_cache has stride 2",
    ),
    "kv-heads-do-not-divide": (
        {"q": torch.zeros(3, 4, 5, 16)}, ValueError, "k_cache has 2 KV heads; .*5 query heads",
    ),
    "no-kv-heads": (
        {"k_cache": torch.zeros(3, 20, 0, 16), "v_cache": torch.zeros(3, 20, 0, 16)},
        ValueError,
        "k_cache has 0 KV heads",
    ),
    "no-query-heads": ({"q": torch.zeros(3, 4, 0, 16)}, ValueError, "q's 0 query heads"),
    "lengths-int64": (
        {"context_lens": ints(3, dtype=I64)}, TypeError, "context_lens is torch.int64; .*int32",
    ),
    "lengths-too-many": (
        {"context_lens": ints(4)}, ValueError, r"context_lens has shape \[4\]; .*\[3\]",
    ),
    "lengths-list": ({"context_lens": [0, 0, 0]}, TypeError, "context_lens is a list"),
    "lengths-strided": ({"context_lens": ints(6)[::2]}, ValueError, "context_lens has stride 2"),
    "k-alone": ({"v": None}, ValueError, "v is None; k and v go together"),
    "v-alone": ({"k": None}, ValueError, "k is None; k and v go together"),
    "k-of-another-block": (
        {"k": torch.zeros(3, 5, 2, 16)}, ValueError, r"k has shape \[3, 5, 2, 16\]; .*\[3, 4, 2,",
    ),
    "v-of-other-heads": ({"v": torch.zeros(3, 4, 1, 16)}, ValueError, "v has shape"),
    "v-float16": ({"v": torch.zeros(3, 4, 2, 16, dtype=F16)}, TypeError, "v is torch.float16"),
    "k-strided": ({"k": torch.zeros(3, 4, 2, 32)[..., ::2]}, ValueError, "k has stride 2"),
    "scale-0": ({"scale": 0.0}, ValueError, "scale is 0.0; .*positive"),
    "scale-negative": ({"scale": -0.5}, ValueError, "scale is -0.5"),
    "scale-nan": ({"scale": math.nan}, ValueError, "scale is nan"),
    "scale-infinite": ({"scale": math.inf}, ValueError, "scale is inf"),
    "scale-string": ({"scale": "1"}, TypeError, "scale is '1'; it must be a number"),
    "return-lse-int": ({"return_lse": 1}, TypeError, "return_lse is 1; it must be a bool"),
    "numerics-unknown": ({"numerics": "exact"}, ValueError, "numerics is .exact.; .*inv"),
    "max-context-negative": ({"max_context": -1}, ValueError, "max_context is -1"),
    "max-context-past-the-cache": ({"max_context": 21}, ValueError, "max_context is 21"),
    "causal-max-context-past-the-cache": (
        CAUSAL | {"max_context": 17}, ValueError, r"max_context is 17; .*\[0, 16\]",
    ),
    "max-context-float": ({"max_context": 5.0}, TypeError, "max_context is 5.0"),
    "causal-block-longer-than-the-cache": (
        CAUSAL | {"k_cache": torch.zeros(3, 3, 2, 16), "v_cache": torch.zeros(3, 3, 2, 16)},
        ValueError,
        "k_cache holds 3 keys; a causal block of 4",
    ),
    "error-bool": ({"error": torch.zeros(1, dtype=torch.bool)}, TypeError, "error is torch.bool"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "exception", "message"), ATTENTION_ERRORS.values(), ids=list(ATTENTION_ERRORS)
)
def test_block_attention_refuses(change: dict, exception: type[Exception], message: str) -> None:
    block_attention(**attention_arguments())
    expect(block_attention, attention_arguments() | change, exception, message)


# --- remask_scatter


def remask_arguments() -> dict:
    return {
        "state": BlockState.start(ints(2, 4, value=MASK), MASK),
        "candidate": ints(2, 4, value=1),
        "confidence": torch.zeros(2, 4),
        "mask_id": MASK,
        "eos_id": EOS,
        "error": new_error_word("cpu"),
    }


def state_with(**fields) -> dict:
    return {"state": remask_arguments()["state"]._replace(**fields)}


REMASK_ERRORS = {
    "state-tuple": ({"state": (1, 2)}, TypeError, "state is a tuple; it must be a BlockState"),
    "tokens-float": (state_with(tokens=torch.zeros(2, 4)), TypeError, "tokens is torch.float32"),
    "tokens-1d": (state_with(tokens=ints(4)), ValueError, r"tokens has shape \[4\]; .*batch"),
    "block-0": (state_with(tokens=ints(2, 0)), ValueError, "tokens has a block of 0"),
    "block-257": (state_with(tokens=ints(2, 257)), ValueError, "tokens has a block of 257"),
    "tokens-strided": (state_with(tokens=ints(2, 8)[:, ::2]), ValueError, "tokens has strides"),
    "commit-step-int64": (
        state_with(commit_step=ints(2, 4, dtype=I64)), TypeError, "state.commit_step is torch.i",
    ),
    "commit-step-shape": (
        state_with(commit_step=ints(2, 3)), ValueError, r"state.commit_step has shape \[2, 3\]",
    ),
    "commit-confidence-float64": (
        state_with(commit_confidence=torch.zeros(2, 4, dtype=F64)),
        TypeError,
        "state.commit_confidence is torch.float64",
    ),
    "masks-left-shape": (
        state_with(masks_left=ints(3)), ValueError, r"state.masks_left has shape \[3\]; .*\[2\]",
    ),
    "step-int64": (state_with(step=ints(2, dtype=I64)), TypeError, "state.step is torch.int64"),
    "step-strided": (state_with(step=ints(4)[::2]), ValueError, "state.step has strides"),
    "step-elsewhere": (
        state_with(step=torch.zeros(2, dtype=I32, device="meta")), ValueError, "state.step is on m",
    ),
    "done-int32": (state_with(done=ints(2)), TypeError, "state.done is torch.int32; .*bool"),
    "done-no-tensor": (state_with(done=[False, False]), TypeError, "state.done is a list"),
    "candidate-int64": (
        {"candidate": ints(2, 4, dtype=I64)}, TypeError, "candidate is torch.int64; .*int32",
    ),
    "candidate-shape": (
        {"candidate": ints(4, 2)}, ValueError, r"candidate has shape \[4, 2\]; .*\[2, 4\]",
    ),
    "candidate-strided": ({"candidate": ints(4, 2).T}, ValueError, "candidate has strides"),
    "confidence-float16": (
        {"confidence": torch.zeros(2, 4, dtype=F16)}, TypeError, "confidence is torch.float16",
    ),
    "confidence-shape": (
        {"confidence": torch.zeros(2, 5)}, ValueError, r"confidence has shape \[2, 5\]",
    ),
    "confidence-strided": (
        {"confidence": torch.zeros(4, 2).T}, ValueError, "confidence has strides",
    ),
    "mask-id-none": ({"mask_id": None}, TypeError, "mask_id is None; it must be an int"),
    "mask-id-negative": ({"mask_id": -3}, ValueError, "mask_id is -3"),
    "eos-id-mask": ({"eos_id": MASK}, ValueError, f"eos_id is {MASK}, the mask id"),
    "eos-id-float": ({"eos_id": 2.0}, TypeError, "eos_id is 2.0"),
    "eos-id-too-large": ({"eos_id": 2**31}, ValueError, "eos_id is 2147483648"),
    "top-k-0": ({"top_k": 0}, ValueError, r"top_k is 0; .*\[1, 256\]"),
    "top-k-257": ({"top_k": 257}, ValueError, "top_k is 257"),
    "top-k-float": ({"top_k": 2.5}, TypeError, "top_k is 2.5"),
    "threshold-nan": ({"threshold": math.nan}, ValueError, "threshold is NaN"),
    "threshold-string": (
        {"threshold": "0.9"}, TypeError, "threshold is '0.9'; it must be a number",
    ),
    "steps-0": ({"steps": 0}, ValueError, "steps is 0"),
    "steps-negative": ({"steps": -2}, ValueError, "steps is -2"),
    "steps-float": ({"steps": 4.0}, TypeError, "steps is 4.0"),
    "steps-and-top-k": ({"steps": 4, "top_k": 2}, ValueError, "top_k is 2 beside steps=4"),
    "error-shape": ({"error": ints(1, 1)}, ValueError, r"error has shape \[1, 1\]; .*\[1\]"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "exception", "message"), REMASK_ERRORS.values(), ids=list(REMASK_ERRORS)
)
def test_remask_scatter_refuses(change: dict, exception: type[Exception], message: str) -> None:
    remask_scatter(**remask_arguments())
    expect(remask_scatter, remask_arguments() | change, exception, message)


@pytest.mark.parametrize(
    ("tokens", "mask_id", "exception", "message"),
    [
        pytest.param([[9]], MASK, TypeError, "tokens is a list", id="list"),
        pytest.param(torch.zeros(2, 4), MASK, TypeError, "tokens is torch.float32", id="float"),
        pytest.param(ints(4), MASK, ValueError, r"tokens has shape \[4\]", id="1d"),
        pytest.param(ints(2, 300), MASK, ValueError, "tokens has a block of 300", id="block-300"),
        pytest.param(ints(4, 2).T, MASK, ValueError, "tokens has strides", id="strided"),
        pytest.param(ints(2, 4), -1, ValueError, "mask_id is -1", id="mask-id-negative"),
        pytest.param(ints(2, 4), "m", TypeError, "mask_id is 'm'", id="mask-id-string"),
    ],
)
def test_block_state_start_refuses(
    tokens, mask_id, exception: type[Exception], message: str
) -> None:
    expect(BlockState.start, {"tokens": tokens, "mask_id": mask_id}, exception, message)


# --- device contents, which only DLM_CHECK=1 reads


@pytest.mark.parametrize(
    ("call", "arguments", "change", "message"),
    [
        pytest.param(
            confidence,
            confidence_arguments,
            {"banned": torch.tensor([1, 8], dtype=I32)},
            r"banned holds 8; ids must be in \[0, 8\)",
            id="banned-id-past-the-vocabulary",
        ),
        pytest.param(
            confidence,
            confidence_arguments,
            {"banned": torch.tensor([-1], dtype=I32)},
            "banned holds -1",
            id="banned-id-negative",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            {"context_lens": torch.tensor([0, 21, 3], dtype=I32)},
            r"context_lens holds 21; lengths must be in \[0, 20\]",
            id="length-past-the-cache",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            CAUSAL | {"context_lens": torch.tensor([0, 17, 3], dtype=I32)},
            r"context_lens holds 17; lengths must be in \[0, 16\]",
            id="causal-length-past-the-cache",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            {"context_lens": torch.tensor([6, 0, 0], dtype=I32), "max_context": 5},
            "context_lens holds 6",
            id="length-past-max-context",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            {"context_lens": torch.tensor([0, 0, -1], dtype=I32)},
            "context_lens holds -1",
            id="length-negative",
        ),
        pytest.param(
            remask_scatter,
            remask_arguments,
            state_with(step=torch.tensor([0, 3], dtype=I32)) | {"steps": 3},
            r"state.step holds \[0, 3\]; .*steps=3",
            id="step-past-the-budget",
        ),
        pytest.param(
            remask_scatter,
            remask_arguments,
            state_with(step=torch.tensor([-1, 0], dtype=I32)) | {"steps": 3},
            "state.step holds",
            id="step-negative",
        ),
    ],
)
def test_contents_are_checked_on_request(
    call: Callable,
    arguments: Callable[[], dict],
    change: dict,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faulty = arguments() | change
    monkeypatch.setenv("DLM_CHECK", "1")
    call(**arguments())
    expect(call, faulty, ValueError, message)
    monkeypatch.setenv("DLM_CHECK", "0")
    call(**faulty)


def test_the_step_of_a_done_request_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_CHECK", "1")
    done = state_with(step=torch.tensor([0, 3], dtype=I32), done=torch.tensor([False, True]))
    remask_scatter(**(remask_arguments() | done | {"steps": 3}))
