"""Arguments of block_attention in which every key and value that no query sees is NaN."""

import pytest
import torch
from torch import Tensor

NAN = float("nan")
FLOAT8 = torch.float8_e4m3fn
KINDS = ("bidirectional", "causal", "drafts")


def attention_inputs(
    kind: str,
    contexts: list[int],
    device: str,
    dtype: torch.dtype = torch.float32,
    *,
    block: int = 7,
    groups: tuple[int, int] = (2, 3),
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    capacity: int | None = None,
    page_size: int = 0,
    float8: bool = False,
    seed: int = 0,
) -> dict:
    """Views of which no two are strided alike.

    The caches are one layer of more, values with heads before positions as some engines keep them;
    queries and fresh values are transposed, fresh keys are a slice of a projection's output. With
    a page_size the keys lie in shuffled pages. `groups` are those of drafts.
    """
    if float8 and device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("a float8 cache needs compute capability 8.9")
    generator = torch.Generator().manual_seed(seed)
    batch, (query_heads, kv_heads) = len(contexts), heads
    own = own_keys(kind, block, groups)
    capacity = max(contexts) + own if capacity is None else capacity
    cache_dtype = FLOAT8 if float8 else dtype

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    k_caches = torch.full((3, batch, capacity, kv_heads, head_dim), NAN)
    v_caches = torch.full((batch, 2, kv_heads, capacity, head_dim), NAN)
    k_cache, v_cache = k_caches[1], v_caches[:, 1].transpose(1, 2)
    for b, context in enumerate(contexts):
        for cache in (k_cache, v_cache):
            values = randn(context + own, kv_heads, head_dim)
            cache[b, : context + own] = (100 * values).clamp(-448, 448) if float8 else values
    q = randn(batch, query_heads, block, head_dim).to(device, dtype)
    arguments = {
        "q": q.transpose(1, 2),
        "k_cache": k_caches.to(device, cache_dtype)[1],
        "v_cache": v_caches.to(device, cache_dtype)[:, 1].transpose(1, 2),
        "context_lens": torch.tensor(contexts, dtype=torch.int32, device=device),
        "return_lse": True,
    }
    if float8:
        arguments["k_scale"] = torch.linspace(0.01, 0.02, kv_heads, device=device)
        arguments["v_scale"] = torch.linspace(0.03, 0.005, kv_heads, device=device)
    if kind != "causal":
        projection = torch.full((batch, block, 3, kv_heads, head_dim), NAN, device=device)
        arguments["k"] = projection.to(dtype)[:, :, 1]
        arguments["v"] = randn(batch, kv_heads, block, head_dim).to(device, dtype).transpose(1, 2)
        arguments["k"].copy_(randn(batch, block, kv_heads, head_dim))
    if kind == "drafts":
        arguments["draft_groups"] = groups
        for name in ("k", "v"):
            arguments[name][:, cached_rows(block, groups)] = NAN
    if page_size:
        arguments = paged(arguments, page_size)
    return arguments


def cached_rows(block: int, groups: tuple[int, int]) -> list[int]:
    """The rows of a block with draft groups whose keys lie in the cache."""
    n, length = groups
    lead = block - n * length
    return [*range(lead), *range(lead, block, length)]


def own_keys(kind: str, block: int, groups: tuple[int, int]) -> int:
    """How many of the block's keys lie in the cache."""
    own = {"bidirectional": 0, "causal": block, "drafts": len(cached_rows(block, groups))}
    return own[kind]


def paged(arguments: dict, page_size: int, shared: int = 0) -> dict:
    """The same call with its keys in shuffled pages of one layer of a cache, among pages of NaN.

    The first `shared` keys, which must be the same for all requests, lie in shared pages. Behind a
    request's pages its table holds garbage.
    """
    generator = torch.Generator().manual_seed(page_size)
    kind = "causal" if "k" not in arguments else "bidirectional"
    kind = "drafts" if "draft_groups" in arguments else kind
    own = own_keys(kind, arguments["q"].shape[1], arguments.get("draft_groups", (1, 1)))
    seen = [n + own for n in arguments["context_lens"].tolist()]
    taken = [-(-n // page_size) for n in seen]
    pages = sum(taken) + 3
    numbers = torch.randperm(pages, generator=generator).tolist()
    garbage = torch.tensor([-1, pages, 2**31 - 1, -(2**31)], dtype=torch.int32)
    table = garbage.repeat(len(seen), max(taken) // 4 + 1)
    for b, count in enumerate(taken):
        for entry in range(count):
            again = b > 0 and (entry + 1) * page_size <= shared
            table[b, entry] = table[0, entry] if again else numbers.pop()
    k_cache, v_cache = arguments["k_cache"], arguments["v_cache"]
    _, _, kv_heads, head_dim = k_cache.shape
    nan = torch.full((), NAN, device=k_cache.device).to(k_cache.dtype)
    k_pool = nan.repeat(pages, 2, page_size, kv_heads, head_dim)[:, 1]
    v_pool = nan.repeat(2, pages, kv_heads, page_size, head_dim)[1].transpose(1, 2)
    for pool, cache in ((k_pool, k_cache), (v_pool, v_cache)):
        for b, n in enumerate(seen):
            for entry in range(taken[b]):
                first = entry * page_size
                last = min(first + page_size, n)
                pool[int(table[b, entry]), : last - first] = cache[b, first:last]
    changed = {"block_table": table.to(k_cache.device), "k_cache": k_pool, "v_cache": v_pool}
    return arguments | changed


def tensors_of(arguments: dict) -> list[Tensor]:
    return [value for value in arguments.values() if isinstance(value, Tensor)]
