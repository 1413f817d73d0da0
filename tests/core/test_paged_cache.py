"""Pages: which of them are shared, what is refused, and that a forward finds what lies there.

That nothing is lost or overwritten in any order of operations is in test_paged_cache_properties.
"""

import pytest
import torch
from caches import cache_after

from dlm_core import PRESETS, Model
from dlm_core.paged_cache import Context, PagedKVCache, PagePool

PAGE = 16
CONFIG = PRESETS["tiny"]


def new_pool(pages: int) -> PagePool:
    return PagePool(CONFIG, pages, PAGE, device="cpu", dtype=torch.float32)


def context_of(pool: PagePool, length: int) -> Context:
    """A context of `length` tokens; what they are is not written."""
    context = Context(pool)
    context.reserve(length)
    context.advance(length)
    return context


def test_whole_pages_of_a_published_prefix_are_shared() -> None:
    pool = new_pool(8)
    prompt = list(range(40))
    first = context_of(pool, 40)
    pool.publish(prompt, first.pages)
    for other, shared in (
        (prompt, 2),
        (prompt[:32], 2),
        (prompt[:31], 1),
        ([*prompt[:16], 99, *prompt[17:]], 1),
        ([99, *prompt[1:]], 0),
        (prompt[16:], 0),
    ):
        context = Context(pool, other)
        assert context.pages == first.pages[:shared], other
        assert context.length == shared * PAGE
        context.free()
    kept = [first, *(Context(pool, prompt) for _ in range(3))]
    for left, context in zip((3, 2, 1, 0), kept, strict=True):
        context.free()
        assert pool.n_free == (6 if left else 8), "it went back though another context holds it"
    assert Context(pool, prompt).pages == [], "a page that went back is still shared"


def test_bad_sizes_are_named() -> None:
    for options, message in (
        ({"pages": 0}, "pages is 0"),
        ({"pages": 1, "page_size": 8}, "page_size is 8"),
        ({"pages": 1, "page_size": 48}, "page_size is 48; it must be a power of two"),
    ):
        with pytest.raises(ValueError, match=message):
            PagePool(CONFIG, **options, device="cpu", dtype=torch.float32)
    context = context_of(new_pool(2), 20)
    with pytest.raises(ValueError, match=r"tokens is 13; it must be in \[0, 12\]"):
        context.advance(13)
    with pytest.raises(ValueError, match=r"length is 21; it must be in \[0, 20\]"):
        context.crop(21)
    with pytest.raises(ValueError, match="13 tokens do not fit .* a context of 20"):
        PagedKVCache([context]).check_room(13)


def test_a_cache_without_memory_is_an_error_that_says_how_much() -> None:
    with pytest.raises(MemoryError, match=r"pages is 2147483647; .* GiB"):
        new_pool(2**31 - 1)


def test_forward_through_pages_has_the_bits_of_a_contiguous_one(model: Model, device: str) -> None:
    ids = torch.randint(4, 60, (3, 70), device=device, generator=torch.Generator(device))
    lengths, block = (37, 5, 60), 9
    pool = PagePool(model.config, 20, PAGE, device=device, dtype=model.dtype)
    for tensor in (*pool.keys, *pool.values):
        tensor.fill_(torch.nan)
    contexts = [Context(pool) for _ in lengths]
    for context, row, length in zip(contexts, ids, lengths, strict=True):
        context.reserve(length + block)
        cache = PagedKVCache([context])
        model(row[None, :length], cache, causal=True)
        cache.advance(length)
    for causal in (False, True):
        blocks = torch.stack([row[n : n + block] for row, n in zip(ids, lengths, strict=True)])
        together = model(blocks, PagedKVCache(contexts), causal=causal)
        for b, length in enumerate(lengths):
            own = cache_after(model, ids[b : b + 1, :length])
            expected = model(blocks[b : b + 1], own, causal=causal)
            assert torch.equal(together[b], expected[0]), f"request {b}, causal={causal}"
