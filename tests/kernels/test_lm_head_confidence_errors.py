"""Every error a caller of lm_head_confidence can make names its argument; nothing changed."""

from collections.abc import Callable

import pytest
import torch
from valid_arguments import F16, F64, I64, expect, head_arguments, ints, two_shards

from dlm_kernels import lm_head_confidence, lm_head_partials, merge_partials

HEAD_ERRORS = {
    "weight-no-tensor": ({"weight": None}, TypeError, "weight is a NoneType; .* torch.Tensor"),
    "weight-1d": ({"weight": torch.zeros(5)}, ValueError, r"weight .*\[5\]; .*\[vocab, features\]"),
    "weight-float64": ({"weight": torch.zeros(8, 5, dtype=F64)}, TypeError, "weight is torch.fl"),
    "weight-by-column": ({"weight": torch.zeros(5, 8).T}, ValueError, "weight has stride 8"),
    "no-vocabulary": ({"weight": torch.zeros(0, 5)}, ValueError, r"weight has shape \[0, 5\]"),
    "no-features": ({"weight": torch.zeros(8, 0)}, ValueError, r"weight has shape \[8, 0\]; .*em"),
    "too-many-ids": (
        {"weight": torch.zeros(2**24 + 1, 5, device="meta")},
        ValueError,
        "weight ends at id 16777217; .*at most 16777216 ids",
    ),
    "hidden-list": ({"hidden": [[0.0]]}, TypeError, "hidden is a list"),
    "hidden-3d": ({"hidden": torch.zeros(1, 3, 5)}, ValueError, r"hidden .*; .*\[rows, 5\]"),
    "hidden-of-other-features": (
        {"hidden": torch.zeros(3, 4)}, ValueError, r"hidden has shape \[3, 4\]; .*\[rows, 5\]",
    ),
    "hidden-of-another-dtype": (
        {"hidden": torch.zeros(3, 5, dtype=F16)}, TypeError, "hidden is torch.float16; .*float32",
    ),
    "hidden-elsewhere": (
        {"hidden": torch.zeros(3, 5, device="meta")}, ValueError, "hidden is on meta; .*cpu",
    ),
    "hidden-strided": ({"hidden": torch.zeros(5, 3).T}, ValueError, "hidden has stride 3"),
    "mask-id-alone": ({"tokens": None}, ValueError, "tokens is None; tokens and mask_id"),
    "tokens-too-few": ({"tokens": ints(2)}, ValueError, r"tokens has shape \[2\]; .*\[3\]"),
    "mask-id-negative": ({"mask_id": -1}, ValueError, "mask_id is -1"),
    "banned-17": ({"banned": ints(17)}, ValueError, "banned holds 17 ids; at most 16"),
    "entropy-text": ({"entropy": "yes"}, TypeError, "entropy is 'yes'; it must be a bool"),
    "margin-none": ({"margin": None}, TypeError, "margin is None; it must be a bool"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "exception", "message"), HEAD_ERRORS.values(), ids=list(HEAD_ERRORS)
)
def test_lm_head_refuses(change: dict, exception: type[Exception], message: str) -> None:
    lm_head_confidence(**head_arguments())
    expect(lm_head_confidence, head_arguments() | change, exception, message)
    shard = {"first_id": 0} | head_arguments()
    expect(lm_head_partials, shard | change, exception, message)


@pytest.mark.parametrize(
    ("call", "change", "exception", "message"),
    [
        (lm_head_confidence, {"error": ints(2)}, ValueError, r"error has shape \[2\]; .*\[1\]"),
        (
            lm_head_confidence,
            {"numerics": "exact"},
            ValueError,
            "numerics is 'exact'; it must be one of invariant, fast",
        ),
        (lm_head_partials, {"first_id": -1}, ValueError, "first_id is -1; "),
        (lm_head_partials, {"first_id": 1.0}, TypeError, "first_id is 1.0; it must be an int"),
        (lm_head_partials, {"first_id": 2**24 - 7}, ValueError, "weight ends at id 16777217"),
    ],
    ids=[
        "error-two-words",
        "numerics-unknown",
        "first-id-negative",
        "first-id-float",
        "shard-past-the-last-id",
    ],
)
def test_lm_head_refuses_what_one_of_the_two_takes(
    call: Callable, change: dict, exception: type[Exception], message: str
) -> None:
    expect(call, head_arguments() | change, exception, message)


MERGE_ERRORS = {
    "partials-none": ({"partials": None}, TypeError, "partials is a NoneType; it must be a list"),
    "partials-empty": ({"partials": []}, ValueError, "partials is empty; .*every shard"),
    "partials-of-tensors": (
        {"partials": [torch.zeros(5, 3, 1)]}, TypeError, r"partials\[0\] is a Tensor; .*Partials",
    ),
    "one-shard-bare": (
        {"partials": two_shards()["partials"][0]}, TypeError, r"partials\[0\] is a Tensor",
    ),
    "first-missing": (
        {"partials": two_shards()["partials"][1:]}, ValueError, r"\[0\].first_id is 4; .* 0",
    ),
    "shards-apart": (two_shards(first_id=5), ValueError, r"partials\[1\].first_id is 5; .* 4"),
    "shards-overlap": (two_shards(first_id=3), ValueError, r"partials\[1\].first_id is 3; .* 4"),
    "shards-differ-in-entropy": (
        two_shards(entropy=False), ValueError, r"\[1\].entropy is False; .*entropy is True",
    ),
    "shards-differ-in-margin": (
        two_shards(margin=True), ValueError, r"partials\[1\].margin is True; .* False",
    ),
    "best-ids-int64": (
        two_shards(best_ids=ints(3, 1, dtype=I64)), TypeError, r"\[1\].best_ids is torch.int64",
    ),
    "other-rows": (
        two_shards(best_ids=ints(2, 1)), ValueError, r"\[1\].best_ids .*\[2, 1\]; .*\[3, chunks\]",
    ),
    "statistics-of-other-chunks": (
        two_shards(statistics=torch.zeros(5, 3, 2)), ValueError, r"\[1\].statistics .*\[5, 3, 1\]",
    ),
    "statistics-float16": (
        two_shards(statistics=torch.zeros(5, 3, 1, dtype=F16)), TypeError, r"\[1\].statistics is ",
    ),
    "best-ids-elsewhere": (
        two_shards(best_ids=ints(3, 1).to("meta")), ValueError, r"\[1\].best_ids is on meta; .*cpu",
    ),
    "tokens-too-few": ({"tokens": ints(2)}, ValueError, r"tokens has shape \[2\]; .*\[3\]"),
    "banned-17": ({"banned": ints(17)}, ValueError, "banned holds 17 ids"),
    "error-int64": ({"error": ints(1, dtype=I64)}, TypeError, "error is torch.int64; .*int32"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "exception", "message"), MERGE_ERRORS.values(), ids=list(MERGE_ERRORS)
)
def test_merge_partials_refuses(change: dict, exception: type[Exception], message: str) -> None:
    merge_partials(**two_shards())
    expect(merge_partials, two_shards() | change, exception, message)
