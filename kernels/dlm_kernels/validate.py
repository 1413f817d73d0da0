"""Checks of what the host can see without reading the device; each names argument and value."""

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ID_DTYPES = (torch.int32, torch.int64)
INT32, FLOAT32 = (torch.int32,), (torch.float32,)
NUMERICS = ("batch_invariant", "fast")
HEAD_DIMS = (16, 32, 64, 128, 256)
MAX_BLOCK = 256  # positions: the longest block that any op takes
MAX_DRAFT_ROWS = 512  # rows of a block with draft groups: k groups of 1 + k take k (k + 1)


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | str],
    dtypes: Sequence[torch.dtype],
    device: torch.device | None = None,
) -> None:
    """Raise unless `tensor` has this shape (a str stands for any size), dtype and device."""
    # The shape as it is, or size by size: an op is called too often to build more than it needs.
    if not (
        isinstance(tensor, Tensor)
        and tensor.dtype in dtypes
        and (device is None or tensor.device == device)
        and (tensor.shape == shape or _has_shape(tensor, shape))
    ):
        raise _misfit(name, tensor, shape, dtypes, device)


def _has_shape(tensor: Tensor, shape: Sequence[int | str]) -> bool:
    if tensor.dim() != len(shape):
        return False
    for have, want in zip(tensor.shape, shape, strict=True):
        if have != want and not isinstance(want, str):
            return False
    return True


def _misfit(
    name: str,
    tensor: object,
    shape: Sequence[int | str],
    dtypes: Sequence[torch.dtype],
    device: torch.device | None,
) -> Exception:
    """What to raise for a tensor that does not fit."""
    if not isinstance(tensor, Tensor):
        return TypeError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor")
    if not _has_shape(tensor, shape):
        wanted = ", ".join(map(str, shape))
        return ValueError(f"{name} has shape {list(tensor.shape)}; it must be [{wanted}]")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return TypeError(f"{name} is {tensor.dtype}; it must be {wanted}")
    return ValueError(f"{name} is on {tensor.device}; it must be on {device}")


def check_unit_stride(name: str, tensor: Tensor) -> None:
    """Raise unless the last dimension is contiguous, so that rows load in whole vectors."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(
            f"{name} has stride {tensor.stride(-1)} in its last dimension; it must be 1"
        )


def check_int(name: str, value: int, low: int, high: int) -> None:
    """Raise unless `value` is an integer in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be an int")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be in [{low}, {high}]")


def check_bool(name: str, value: bool) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a bool")


def check_number(name: str, value: float) -> None:
    """Raise unless `value` is a real number of the host, not a tensor."""
    if type(value) is not float and (not isinstance(value, Real) or isinstance(value, bool)):
        raise TypeError(f"{name} is {value!r}; it must be a number")


def check_draft_groups(draft_groups: tuple[int, int], block: int) -> None:
    """Raise unless a block of so many rows can end in these draft groups."""
    if not isinstance(draft_groups, tuple) or len(draft_groups) != 2:
        raise TypeError(f"draft_groups is {draft_groups!r}; it must be a tuple (n, length)")
    groups, length = draft_groups
    check_int("draft_groups[0]", groups, 1, MAX_DRAFT_ROWS)
    check_int("draft_groups[1]", length, 2, MAX_DRAFT_ROWS)
    if groups * length > block:
        raise ValueError(
            f"draft_groups is {draft_groups}: {groups * length} rows; the block has {block}"
        )
