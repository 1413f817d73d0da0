"""What kernel tests measure with: errors against errors, bits against bits, poison, canaries."""

import math
from collections.abc import Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import reduce
from operator import getitem

import pytest
import torch
from torch import Tensor

from dlm_kernels import launch

# The interpreter's bfloat16 arithmetic is wrong.
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu, id="bf16")

# Elements of sentinel on each side of a guarded tensor; a multiple of 16 keeps it aligned.
_GUARD = 4096
_INTEGER_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def rows_and_weight(
    rows: int, in_features: int, out_features: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Operands of a product, of order one as it is, with NaN between their rows."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, in_features, generator=generator)
    weight = torch.randn(out_features, in_features, generator=generator) * in_features**-0.5
    views = []
    for content in (x, weight):
        buffer = torch.full((content.shape[0], content.shape[1] + 8), torch.nan)
        buffer[:, : content.shape[1]] = content
        views.append(buffer.to(dtype).to(device)[:, : content.shape[1]])
    return tuple(views)


def bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, so that NaN equals itself and -0.0 differs from 0.0."""
    return tensor.contiguous().view(_INTEGER_OF_WIDTH[tensor.element_size()])


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    assert actual.shape == expected.shape, f"{what}: {actual.shape} against {expected.shape}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} against {expected.dtype}"
    differ = (bits(actual) != bits(expected)).nonzero()
    if len(differ):
        first = tuple(differ[0].tolist())
        pytest.fail(
            f"{what}: {len(differ)} of {actual.numel()} differ in bits, first at {first}: "
            f"{actual[first].item()!r} against {expected[first].item()!r}"
        )


def assert_all_same_bits(
    actual: Iterable[Tensor | None], expected: Iterable[Tensor | None], what: str = ""
) -> None:
    """Of what an op returns, in which a None is what was not asked for."""
    for i, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        if ours is not None or theirs is not None:
            assert_same_bits(ours, theirs, f"result {i} {what}")


def assert_close_to_reference(
    actual: Tensor, same_dtype: Tensor, reference: Tensor, *, floor: float, what: str = ""
) -> None:
    """Bound the kernel's error by twice the error plain torch makes in the same dtype, plus floor.

    Both the largest and the root-mean-square error are bounded. `reference` is exact to float32 or
    better. NaN and infinities have to stand where the reference has them.
    """
    actual, same_dtype, reference = (x.cpu().double() for x in (actual, same_dtype, reference))
    assert actual.shape == reference.shape, f"{what}: {actual.shape} against {reference.shape}"
    finite = reference.isfinite()
    special = ~finite | ~actual.isfinite()
    wrong = special & ~((actual == reference) | (actual.isnan() & reference.isnan()))
    assert not wrong.any(), f"{what}: {_worst(actual, reference, wrong.double())}"
    if not finite.any():
        return

    error = torch.where(finite, (actual - reference).abs(), 0.0)
    torch_error = torch.where(finite, (same_dtype - reference).abs(), 0.0)
    for name, size in (("max", torch.amax), ("RMS", lambda x: x.square().mean().sqrt())):
        bound = 2 * float(size(torch_error)) + floor
        assert float(size(error)) <= bound, (
            f"{what}: {name} error {float(size(error)):.3g} is over {bound:.3g} "
            f"(torch's: {float(size(torch_error)):.3g}); {_worst(actual, reference, error)}"
        )


def _worst(actual: Tensor, reference: Tensor, error: Tensor, count: int = 5) -> str:
    """The coordinates with the largest errors, as a message."""
    order = error.flatten().argsort(descending=True)[:count]
    places = zip(*(axis.tolist() for axis in torch.unravel_index(order, error.shape)), strict=True)
    lines = [f"{list(at)}: {actual[at].item()!r} not {reference[at].item()!r}" for at in places]
    return "worst at " + ", ".join(lines)


def _sentinel(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    if dtype.is_floating_point:
        return -12345.0 if dtype.itemsize > 1 else -416.0  # what float8_e4m3fn can hold
    return torch.iinfo(dtype).max - 5


def _poison(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return math.nan if dtype.is_floating_point else torch.iinfo(dtype).min + 5


class Guarded:
    """A contiguous tensor in the middle of a buffer whose ends must not change."""

    def __init__(self, content: Tensor) -> None:
        size = content.numel()
        self._buffer = torch.full(
            (_GUARD + size + _GUARD,),
            _sentinel(content.dtype),
            dtype=content.dtype,
            device=content.device,
        )
        self.tensor = self._buffer[_GUARD : _GUARD + size].view(content.shape)
        self.tensor.copy_(content)

    def check(self) -> None:
        ends = torch.cat([self._buffer[:_GUARD], self._buffer[-_GUARD:]])
        touched = (ends != _sentinel(ends.dtype)).nonzero().flatten().tolist()
        assert not touched, f"a kernel wrote outside a tensor of shape {list(self.tensor.shape)}"


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Fill what ops allocate with NaN (integers: an impossible id) and check canaries round it."""
    allocated = []

    def allocate(size, dtype, device) -> Tensor:
        content = torch.full(size, _poison(dtype), dtype=dtype, device=device)
        allocated.append(Guarded(content))
        return allocated[-1].tensor

    def new_empty(self, *size, dtype=None, device=None):
        size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return allocate(size, dtype or self.dtype, device or self.device)

    def empty_like(other, *, dtype=None, device=None, memory_format=None):
        return allocate(other.shape, dtype or other.dtype, device or other.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", new_empty)
        patch.setattr(torch, "empty_like", empty_like)
        yield
    for guarded in allocated:
        guarded.check()


@contextmanager
def unchanged(*tensors: Tensor) -> Iterator[None]:
    """Check that no bit of these tensors changes, nor of what they are views of."""
    before = [(_storage(tensor), _storage(tensor).clone()) for tensor in tensors]
    yield
    for i, (now, then) in enumerate(before):
        assert torch.equal(now, then), f"tensor {i}, which is only read, has changed"


def _storage(tensor: Tensor) -> Tensor:
    octets = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return octets.set_(tensor.untyped_storage())


def launching_with(
    table: dict, device: str, *keys: Hashable, **changes: object
) -> AbstractContextManager[None]:
    """One entry of a launch table, on this device, with these fields changed."""
    keys = launch.arch_of(torch.device(device)), *keys
    return launch.overriding(table, keys, replace(reduce(getitem, keys, table), **changes))
