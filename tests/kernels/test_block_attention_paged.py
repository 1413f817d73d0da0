"""block_attention over pages: the bits of a contiguous cache, and no key read that isn't named."""

import pytest
import torch
from numeric import assert_same_bits, forced_backend, unchanged
from torch import Tensor

from dlm_kernels import block_attention, launch, new_error_word
from dlm_kernels.error_word import PAGE_OUT_OF_RANGE

NAN = float("nan")
KINDS = ["bidirectional", "causal", "drafts"]
# 2 groups of 3 behind one causal row.
BLOCK, GROUPS, OWN_KEYS = 7, (2, 3), {"bidirectional": 0, "causal": 7, "drafts": 3}


def inputs(kind: str, contexts: list[int], dtype: torch.dtype, device: str) -> dict:
    """Arguments of a contiguous call; NaN behind what a request sees."""
    generator = torch.Generator().manual_seed(len(contexts))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    capacity = max(contexts) + OWN_KEYS[kind]
    arguments = {
        "q": randn(len(contexts), BLOCK, 4, 16),
        "k_cache": randn(len(contexts), capacity, 2, 16),
        "v_cache": randn(len(contexts), capacity, 2, 16),
        "context_lens": torch.tensor(contexts, dtype=torch.int32, device=device),
        "return_lse": True,
    }
    for b, context in enumerate(contexts):
        for name in ("k_cache", "v_cache"):
            arguments[name][b, context + OWN_KEYS[kind] :] = NAN
    if kind != "causal":
        arguments |= {name: randn(len(contexts), BLOCK, 2, 16) for name in ("k", "v")}
    if kind == "drafts":
        arguments["draft_groups"] = GROUPS
    return arguments


def paged(arguments: dict, kind: str, page_size: int, shared: int = 0) -> dict:
    """The same keys in shuffled pages of one layer of a cache, among pages of NaN.

    The first `shared` keys, which must be the same for all requests, lie in shared pages. Behind a
    request's pages its table holds garbage.
    """
    generator = torch.Generator().manual_seed(page_size)
    seen = [n + OWN_KEYS[kind] for n in arguments["context_lens"].tolist()]
    taken = [-(-n // page_size) for n in seen]
    pages = sum(taken) + 3
    numbers = torch.randperm(pages, generator=generator).tolist()
    garbage = torch.tensor([-1, pages, 2**31 - 1, -(2**31)], dtype=torch.int32)
    table = garbage.repeat(len(seen), max(taken) // 4 + 1)
    for b, count in enumerate(taken):
        for entry in range(count):
            again = b > 0 and (entry + 1) * page_size <= shared
            table[b, entry] = table[0, entry] if again else numbers.pop()
    changed = {"block_table": table.to(arguments["q"].device)}
    for name in ("k_cache", "v_cache"):
        contiguous = arguments[name]
        layers = contiguous.new_full((pages, 2, page_size, *contiguous.shape[2:]), NAN)
        pool = layers[:, 1]
        for b, n in enumerate(seen):
            for position in range(n):
                page = int(table[b, position // page_size])
                pool[page, position % page_size] = contiguous[b, position]
        changed[name] = pool
    return arguments | changed


def tensors_of(arguments: dict) -> dict[str, Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for name, ours, theirs in zip(("out", "lse"), actual, expected, strict=True):
        assert_same_bits(ours, theirs, name)


@pytest.mark.parametrize("page_size", [16, 32, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_those_of_a_contiguous_cache(
    kind: str, page_size: int, dtype: torch.dtype, triton_device: str
) -> None:
    longest = 1021 if page_size == 32 else 253  # the block across the end of a split, or of tiles
    arguments = inputs(kind, [longest, 0, 33], dtype, triton_device)
    in_pages = paged(arguments, kind, page_size)
    error = new_error_word(triton_device)
    with forced_backend("triton"), unchanged(**tensors_of(in_pages)):
        assert_same(block_attention(**in_pages, error=error), block_attention(**arguments))
    assert not error.item()


@pytest.mark.parametrize("numerics", ["invariant", "fast"])
@pytest.mark.parametrize("page_size", [16, 32, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_gives_what_it_gives_for_a_contiguous_cache(
    kind: str, page_size: int, numerics: str, backend: str, op_device: str
) -> None:
    arguments = inputs(kind, [125, 0, 31], torch.float32, op_device) | {"numerics": numerics}
    in_pages = paged(arguments, kind, page_size)
    error = new_error_word(op_device)
    with unchanged(**tensors_of(in_pages)):
        actual = block_attention(**in_pages, error=error)
    expected = block_attention(**arguments)
    if numerics == "invariant":
        assert_same(actual, expected)
    else:
        torch.testing.assert_close(actual, expected)
    assert not error.item()


@pytest.mark.parametrize("kind", KINDS)
def test_requests_may_share_pages(kind: str, backend: str, op_device: str) -> None:
    arguments = inputs(kind, [50, 40, 70], torch.float32, op_device)
    for name in ("k_cache", "v_cache"):
        arguments[name][1:, :32] = arguments[name][0, :32]
    in_pages = paged(arguments, kind, 16, shared=32)
    assert in_pages["block_table"][:, :2].unique(dim=0).shape[0] == 1
    assert_same(block_attention(**in_pages), block_attention(**arguments))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("entry", "clamped"), [(-1, 0), (-(2**31), 0), (10, 9), (2**31 - 1, 9)])
@pytest.mark.parametrize("at", ["first", "last"])
def test_a_page_that_is_not_there_is_clamped_and_reported(
    kind: str, entry: int, clamped: int, at: str, backend: str, op_device: str
) -> None:
    contexts = [32 - OWN_KEYS[kind], 80 - OWN_KEYS[kind]]
    in_pages = paged(inputs(kind, contexts, torch.float32, op_device), kind, 16)
    for name in ("k_cache", "v_cache"):
        assert len(in_pages[name]) == 10
        in_pages[name] = in_pages[name].nan_to_num(0.5)
    table = in_pages["block_table"]
    column = 0 if at == "first" else 4
    error = new_error_word(op_device)
    table[1, column] = clamped
    expected = block_attention(**in_pages, error=error)
    assert not error.item()
    table[1, column] = entry
    assert_same(block_attention(**in_pages, error=error), expected)
    assert error.item() == PAGE_OUT_OF_RANGE
    assert_same(block_attention(**in_pages), expected)


@pytest.mark.parametrize("split_keys", [1024, 4096])
def test_the_last_of_many_pages_is_checked(
    split_keys: int, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entry 130 lies in the third split, or behind the 128th entry of a long one."""
    config = launch.AttentionLaunch(32, 32, split_keys, 8192, 2048, num_warps=4, num_stages=1)
    monkeypatch.setattr(launch, "smallest_serving", lambda table, size: config)
    arguments = inputs("causal", [130 * 16, 5], torch.float32, triton_device)
    in_pages = paged(arguments, "causal", 16)
    in_pages["block_table"][0, 130] = 1 << 20
    error = new_error_word(triton_device)
    with forced_backend("triton"):
        block_attention(**in_pages, error=error)
    assert error.item() == PAGE_OUT_OF_RANGE
