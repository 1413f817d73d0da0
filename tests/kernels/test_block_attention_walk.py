"""block_attention where one program walks all splits: the bits of programs of one split each."""

import importlib
from itertools import product

import pytest
import torch
from numeric import assert_same_bits, forced_backend
from torch import Tensor

from dlm_kernels import block_attention, launch

attention = importlib.import_module("dlm_kernels.block_attention")

# As the interpreter knows it: its entries for bfloat16 serve float16 too.
DTYPES = [
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
]


@pytest.fixture(autouse=True)
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits end at 64, 128, 224 and 320, in an entry that compiles for every GPU."""
    entry = launch.AttentionLaunch(32, 32, 64, 128, 96, num_warps=4, num_stages=2, walks=True)
    monkeypatch.setattr(launch, "smallest_serving", lambda table, size: entry)


def inputs(kind: str, dtype: torch.dtype, device: str, float8: bool, paged: bool) -> dict:
    """Contexts on, before and behind the ends of splits, the block's own keys across them."""
    generator = torch.Generator().manual_seed(3)
    contexts = [0, 64, 65, 124, 127, 128, 220, 224, 225]
    batch, block, capacity = len(contexts), 11, 240

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    cache_dtype = torch.float8_e4m3fn if float8 else dtype
    arguments = {
        "q": randn(batch, block, 4, 16).to(dtype) * 3,
        "k_cache": randn(batch, capacity, 1, 16).to(cache_dtype),
        "v_cache": randn(batch, capacity, 1, 16).to(cache_dtype),
        "context_lens": torch.tensor(contexts, dtype=torch.int32, device=device),
        "return_lse": True,
    }
    if kind != "causal":
        arguments |= {name: randn(batch, block, 1, 16).to(dtype) for name in ("k", "v")}
    if kind == "drafts":
        arguments["draft_groups"] = (2, 4)  # behind three causal rows
    if float8:
        arguments["k_scale"] = torch.tensor([0.7], device=device)
        arguments["v_scale"] = torch.tensor([1.3], device=device)
    if paged:
        pages = torch.arange(batch * capacity // 16, dtype=torch.int32, device=device)
        arguments["block_table"] = pages.view(batch, -1)
        for name in ("k_cache", "v_cache"):
            arguments[name] = arguments[name].view(-1, 16, 1, 16)
    return arguments


def run(arguments: dict, walks: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    asked = []

    def answer(*args) -> bool:
        asked.append(args)
        return walks

    monkeypatch.setattr(attention, "_one_program_walks", answer)
    with forced_backend("triton"):
        result = block_attention(**arguments)
    assert len(asked) == 1, "the launcher did not ask"
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@pytest.mark.parametrize(
    ("kind", "float8"),
    [*product(("bidirectional", "causal"), (False, True)), ("drafts", False)],
)
def test_bits_do_not_depend_on_who_merges(
    kind: str, float8: bool, paged: bool, dtype: torch.dtype, triton_device: str, monkeypatch
) -> None:
    if float8 and triton_device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    arguments = inputs(kind, dtype, triton_device, float8, paged)
    expected = run(arguments, False, monkeypatch)
    for name, ours, theirs in zip(
        ("out", "lse"), run(arguments, True, monkeypatch), expected, strict=True
    ):
        assert ours.isfinite().all()
        assert_same_bits(ours, theirs, name)
    with forced_backend("torch"):
        close = block_attention(**arguments)
    torch.testing.assert_close(expected, close, atol=0.01, rtol=0.01)
