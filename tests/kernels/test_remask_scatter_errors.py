"""Every error a caller of remask_scatter can make names its argument; nothing changed."""

import pytest
import torch
from valid_arguments import F16, F64, I32, I64, MASK, expect, ints, remask_arguments, state_with

from dlm_kernels import BlockState, Noise, Rule, RuleTable, remask_scatter


def noisy(**fields) -> dict:
    """A rule that needs noise, and noise with these fields."""
    noise = Noise(seed=ints(2, dtype=I64), position=ints(2), vocab_size=50)
    return {"rule": Rule(confidence="random"), "noise": noise._replace(**fields)}


def table_with(**fields) -> dict:
    return {"rule": RuleTable.pack([Rule()] * 2, "cpu")._replace(**fields)}


REMASKING = {"rule": Rule(remask_below=0.5), "token_probability": torch.zeros(2, 4)}


REMASK_ERRORS = {
    "state-tuple": ({"state": (1, 2)}, TypeError, "state is a tuple; it must be a BlockState"),
    "tokens-float": (state_with(tokens=torch.zeros(2, 4)), TypeError, "tokens is torch.float32"),
    "tokens-1d": (state_with(tokens=ints(4)), ValueError, r"tokens has shape \[4\]; .*batch"),
    "block-0": (state_with(tokens=ints(2, 0)), ValueError, "tokens has a block of 0"),
    "block-257": (state_with(tokens=ints(2, 257)), ValueError, "tokens has a block of 257"),
    "tokens-strided": (state_with(tokens=ints(2, 8)[:, ::2]), ValueError, "tokens has strides"),
    "fixed-int32": (state_with(fixed=ints(2, 4)), TypeError, "state.fixed is torch.int32; .*bool"),
    "fixed-shape": (
        state_with(fixed=torch.zeros(2, 5, dtype=torch.bool)),
        ValueError,
        r"state.fixed has shape \[2, 5\]",
    ),
    "edit-step-int64": (
        state_with(edit_step=ints(2, dtype=I64)), TypeError, "state.edit_step is torch.int64",
    ),
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
    "rule-name": ({"rule": "llada"}, TypeError, "rule is a str; it must be a Rule or a RuleTable"),
    "rule-none": ({"rule": None}, TypeError, "rule is a NoneType"),
    "table-of-three": (
        {"rule": RuleTable.pack([Rule()] * 3, "cpu")},
        ValueError,
        r"rule.numbers has shape \[3, 5\]; .*\[2, 5\]",
    ),
    "table-numbers-float64": (
        table_with(numbers=torch.zeros(2, 5, dtype=F64)), TypeError, "rule.numbers is torch.float",
    ),
    "table-counts-columns": (
        table_with(counts=ints(2, 6)), ValueError, r"rule.counts has shape \[2, 6\]; .*\[2, 7\]",
    ),
    "table-counts-strided": (
        table_with(counts=ints(2, 14)[:, ::2]), ValueError, "rule.counts has strides",
    ),
    "no-token-probability": (
        {"rule": Rule(remask_below=0.5)}, ValueError, "token_probability is None; .*remask_below",
    ),
    "no-token-probability-for-a-table": (
        {"rule": RuleTable.pack([Rule(), Rule(remask_below=0.5)], "cpu")},
        ValueError,
        "token_probability is None",
    ),
    "token-probability-float16": (
        REMASKING | {"token_probability": torch.zeros(2, 4, dtype=F16)},
        TypeError,
        "token_probability is torch.float16",
    ),
    "token-probability-shape": (
        REMASKING | {"token_probability": torch.zeros(2, 3)},
        ValueError,
        r"token_probability has shape \[2, 3\]",
    ),
    "no-noise-for-random": (
        {"rule": Rule(confidence="random")}, ValueError, "noise is None; it must be a Noise",
    ),
    "no-noise-for-renoise": ({"rule": Rule(renoise=True)}, ValueError, "noise is None"),
    "noise-seed-int32": (noisy(seed=ints(2)), TypeError, "noise.seed is torch.int32; .*int64"),
    "noise-seed-shape": (
        noisy(seed=ints(1, dtype=I64)), ValueError, r"noise.seed has shape \[1\]; .*\[2\]",
    ),
    "noise-position-int64": (
        noisy(position=ints(2, dtype=I64)), TypeError, "noise.position is torch.int64",
    ),
    "noise-vocab-1": (noisy(vocab_size=1), ValueError, "noise.vocab_size is 1"),
    "noise-vocab-float": (noisy(vocab_size=9.0), TypeError, "noise.vocab_size is 9.0"),
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


@pytest.mark.parametrize("name", ["undecided", "fixed"])
def test_block_state_start_refuses_other_positions(name: str) -> None:
    good = {"tokens": ints(2, 4), "mask_id": MASK}
    expect(BlockState.start, good | {name: ints(2, 4)}, TypeError, f"{name} is torch.int32; .*bool")
    wrong = torch.zeros(2, 3, dtype=torch.bool)
    expect(BlockState.start, good | {name: wrong}, ValueError, rf"{name} has shape \[2, 3\]")
    wrong = torch.zeros(4, 2, dtype=torch.bool).T
    expect(BlockState.start, good | {name: wrong}, ValueError, f"{name} has strides")
