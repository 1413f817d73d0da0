"""Every error a caller of confidence can make names its argument; nothing changed."""

import pytest
import torch
from valid_arguments import F64, I32, I64, confidence_arguments, expect, ints

from dlm_kernels import confidence

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
