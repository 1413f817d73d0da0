"""block_attention over a cache in float8: every number of it, every form, and a row's bits."""

import pytest
import torch
from numeric import assert_close_to_reference, assert_same_bits, forced_backend, unchanged
from test_block_attention_paged import paged
from torch import Tensor

from dlm_kernels import block_attention

FLOAT8 = torch.float8_e4m3fn
OWN_KEYS = {"bidirectional": 0, "causal": 7, "drafts": 3}


@pytest.fixture(autouse=True)
def device_that_converts_float8(triton_device: str) -> None:
    if triton_device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")


def inputs(
    kind: str, contexts: list[int], dtype: torch.dtype, device: str, head_dim: int = 16
) -> dict:
    """A block of 7 over a cache that holds up to 448, and NaN behind what a request sees."""
    generator = torch.Generator().manual_seed(len(contexts))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    batch, seen = len(contexts), max(contexts) + OWN_KEYS[kind]
    k_cache, v_cache = (randn(2, batch, seen, 2, head_dim) * 100).clamp(-448, 448)
    for b, context in enumerate(contexts):
        k_cache[b, context + OWN_KEYS[kind] :] = v_cache[b, context + OWN_KEYS[kind] :] = torch.nan
    arguments = {
        "q": randn(batch, 7, 4, head_dim).to(dtype),
        "k_cache": k_cache.to(FLOAT8),
        "v_cache": v_cache.to(FLOAT8),
        "k_scale": torch.tensor([0.01, 0.02]),
        "v_scale": torch.tensor([0.03, 0.005]),
        "context_lens": torch.tensor(contexts, dtype=torch.int32),
        "return_lse": True,
    }
    if kind != "causal":
        arguments |= {name: randn(batch, 7, 2, head_dim).to(dtype) for name in ("k", "v")}
    arguments = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    if kind == "drafts":
        arguments["draft_groups"] = (2, 3)
    return arguments


def dequantized(arguments: dict, dtype: torch.dtype) -> dict:
    """The same call over a cache in `dtype`, that every other test is about."""
    changed = {"k_scale": None, "v_scale": None}
    for name in ("k", "v"):
        scale = arguments[f"{name}_scale"][:, None]
        changed[f"{name}_cache"] = (arguments[f"{name}_cache"].float() * scale).to(dtype)
    return arguments | changed


@pytest.mark.parametrize("numerics", ["invariant", "fast"])
@pytest.mark.parametrize("kind", OWN_KEYS)
@pytest.mark.parametrize("head_dim", [16, 128])
def test_matches_the_reference(
    head_dim: int, kind: str, numerics: str, dtype: torch.dtype, triton_device: str
) -> None:
    contexts = [0, 61, 530] if head_dim == 16 else [33]
    arguments = inputs(kind, contexts, dtype, triton_device, head_dim) | {"numerics": numerics}
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
    with forced_backend("triton"), unchanged(**tensors):
        actual = block_attention(**arguments)
    with forced_backend("torch"):
        same_dtype = block_attention(**(dequantized(arguments, dtype) | {"numerics": "fast"}))
    wide = {name: arguments[name].float() for name in ("q", "k", "v") if name in arguments}
    with forced_backend("reference"):
        exact = block_attention(**(dequantized(arguments, torch.float32) | wide))
    floors = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
    for name, *values in zip(("out", "lse"), actual, same_dtype, exact, strict=True):
        floor = floors[dtype] if name == "out" else 8e-6
        assert_close_to_reference(*values, floor=floor, what=name)


@pytest.mark.parametrize("kind", OWN_KEYS)
@pytest.mark.parametrize("numerics", ["invariant", "fast"])
def test_every_backend_gives_what_it_gives_for_the_scaled_cache(
    kind: str, numerics: str, backend: str, op_device: str
) -> None:
    arguments = inputs(kind, [40, 0, 70], torch.float32, op_device) | {"numerics": numerics}
    expected = block_attention(**dequantized(arguments, torch.float32))
    torch.testing.assert_close(block_attention(**arguments), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", OWN_KEYS)
def test_pages_have_the_bits_of_a_contiguous_cache(kind: str, backend: str, op_device: str) -> None:
    arguments = inputs(kind, [125, 0, 31], torch.float32, op_device)
    actual, expected = (block_attention(**x) for x in (paged(arguments, kind, 16), arguments))
    for name, ours, theirs in zip(("out", "lse"), actual, expected, strict=True):
        assert_same_bits(ours, theirs, name)


def test_every_number_is_converted(backend: str, op_device: str) -> None:
    """Each of the 254 finite ones is the value of a context of one key."""
    codes = [i for i in range(256) if i % 128 != 127]
    values = torch.tensor([*codes, 0, 0], dtype=torch.uint8, device=op_device).view(FLOAT8)
    v_cache = values.view(1, 1, 1, 256)
    out = block_attention(
        torch.zeros(1, 1, 1, 256, device=op_device),
        torch.zeros_like(v_cache.float()).to(FLOAT8),
        v_cache,
        torch.zeros(1, dtype=torch.int32, device=op_device),
        k_scale=torch.ones(1, device=op_device),
        v_scale=torch.full((1,), 0.5, device=op_device),
    )
    assert torch.equal(out[0, 0, 0].double(), values.double() / 2)


def test_causal_rows_do_not_depend_on_the_block(
    dtype: torch.dtype, backend: str, op_device: str
) -> None:
    """Alone, among others, in a batch, and as the causal rows and slots 0 of draft groups."""
    if backend == "reference":
        pytest.skip("it promises no bits")
    arguments = inputs("causal", [507], dtype, op_device)  # across the end of a split
    q, length = arguments["q"], arguments["context_lens"]
    whole = block_attention(**arguments)
    for row in (0, 4, 5, 6):
        one = arguments | {"q": q[:, row : row + 1], "context_lens": length + row}
        for ours, theirs in zip(block_attention(**one), whole, strict=True):
            assert_same_bits(ours[:, 0], theirs[:, row], f"row {row} alone")
    fresh = torch.randn(1, 7, 2, 16, generator=torch.Generator().manual_seed(9))
    fresh = fresh.to(dtype).to(op_device)
    drafts = arguments | {"draft_groups": (3, 2), "k": fresh, "v": fresh}
    drafts["q"] = q[:, [0, 1, 1, 2, 2, 3, 3]]
    for ours, theirs in zip(block_attention(**drafts), whole, strict=True):
        assert_same_bits(ours[:, [0, 1, 3, 5]], theirs[:, :4], "among drafts")


def test_a_gpu_that_cannot_convert_float8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = inputs("causal", [5], torch.float32, "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(Tensor, "is_cuda", True, raising=False)
    with (
        forced_backend("triton"),
        pytest.raises(TypeError, match=r"k_cache is torch.float8_e4m3fn, .* cpu has 8.6"),
    ):
        block_attention(**arguments)
