"""The page pool: nothing is lost, shared or overwritten by accident, whatever the order."""

from pathlib import Path

import pytest
import torch
from cached_rows import write
from torch import Tensor

from dlm_core import PRESETS, KVCache, Model, load_model
from dlm_core.paged_cache import Context, OutOfPages, PagedKVCache, PagePool

PAGE = 16
CONFIG = PRESETS["tiny"]


def new_pool(pages: int, **options) -> PagePool:
    return PagePool(CONFIG, pages, PAGE, device="cpu", dtype=torch.float32, **options)


def context_of(pool: PagePool, length: int, value: float) -> Context:
    """`length` tokens whose keys are all `value` and whose values are its negative."""
    context = Context(pool)
    append(context, length, value)
    return context


def append(context: Context, tokens: int, value: float) -> None:
    """Write `tokens` more as a causal forward does, through a cache of this one context."""
    context.reserve(tokens)
    cache = PagedKVCache([context])
    cache.check_room(tokens)
    shape = (1, tokens, CONFIG.num_key_value_heads, CONFIG.head_dim)
    for layer in range(CONFIG.num_hidden_layers):
        filled = torch.full(shape, value + layer)
        write(cache, layer, filled, -filled)
    cache.advance(tokens)


def content(context: Context) -> list[float]:
    """The value at each position, equal over heads, keys, values and layers or an error."""
    where = torch.tensor(context.pages, dtype=torch.long)
    found = None
    for layer in range(CONFIG.num_hidden_layers):
        for pages, sign in ((context.pool.keys, 1), (context.pool.values, -1)):
            rows = pages[layer][where].flatten(0, 1)[: context.length].flatten(1)
            assert (rows == rows[:, :1]).all()
            value = (sign * rows[:, 0] - layer).tolist() if context.length else []
            assert found in (None, value)
            found = value
    return found


def test_pages_come_and_go() -> None:
    pool = new_pool(4)
    context = context_of(pool, 17, 1.0)
    assert (len(context.pages), pool.n_free) == (2, 2)
    append(context, 15, 2.0)
    assert (len(context.pages), pool.n_free) == (2, 2)
    assert content(context) == [1.0] * 17 + [2.0] * 15
    context.crop(16)
    assert (len(context.pages), pool.n_free) == (1, 3)
    assert content(context) == [1.0] * 16
    context.free()
    assert (context.length, pool.n_free) == (0, 4)


def test_reserve_without_pages_changes_nothing() -> None:
    pool = new_pool(2)
    context = context_of(pool, 20, 1.0)
    with pytest.raises(OutOfPages, match="1 pages are wanted and 0 of 2 are free"):
        context.reserve(13)
    assert (context.length, len(context.pages), pool.n_free) == (20, 2, 0)
    context.reserve(12)


def test_a_shared_page_is_copied_before_it_is_written() -> None:
    pool = new_pool(6)
    prompt = list(range(32))
    first = context_of(pool, 32, 1.0)
    pool.publish(prompt, first.pages)
    second = Context(pool, prompt)
    second.crop(20)  # into the second shared page
    assert pool.n_free == 4
    append(second, 3, 2.0)
    assert pool.n_free == 3
    assert content(first) == [1.0] * 32
    assert content(second) == [1.0] * 20 + [2.0] * 3
    first.crop(20)
    append(first, 3, 3.0)  # nobody else holds that page any more
    assert pool.n_free == 3
    assert content(second) == [1.0] * 20 + [2.0] * 3


def test_whole_pages_of_a_published_prefix_are_shared() -> None:
    pool = new_pool(8)
    prompt = list(range(40))
    first = context_of(pool, 40, 1.0)
    pool.publish(prompt, first.pages)
    for other, shared in (
        (prompt, 2),
        (prompt[:33], 2),
        (prompt[:32], 2),
        (prompt[:31], 1),
        ([*prompt[:16], 99, *prompt[17:]], 1),
        ([99, *prompt[1:]], 0),
        (prompt[16:], 0),
        ([], 0),
    ):
        context = Context(pool, other)
        assert context.pages == first.pages[:shared], other
        assert context.length == shared * PAGE
        context.free()
    kept = Context(pool, prompt)
    first.free()
    assert content(kept) == [1.0] * 32
    kept.free()
    assert pool.n_free == 8
    assert Context(pool, prompt).pages == [], "a page that went back is still shared"


def test_swapping_out_frees_pages_and_brings_the_same_back() -> None:
    pool = new_pool(3)
    context = context_of(pool, 30, 5.0)
    context.reserve(16)
    context.swap_out()
    assert context.is_swapped_out and pool.n_free == 3
    other = context_of(pool, 30, 7.0)
    with pytest.raises(OutOfPages):
        context.swap_in()
    assert context.is_swapped_out
    other.crop(10)
    context.swap_in()
    assert not context.is_swapped_out
    assert content(context) == [5.0] * 30
    assert content(other) == [7.0] * 10


def test_bad_sizes_are_named() -> None:
    for options, message in (
        ({"pages": 0}, "pages is 0"),
        ({"pages": 1, "page_size": 8}, "page_size is 8"),
        ({"pages": 1, "page_size": 48}, "page_size is 48; it must be a power of two"),
    ):
        with pytest.raises(ValueError, match=message):
            PagePool(CONFIG, **options, device="cpu", dtype=torch.float32)
    context = context_of(new_pool(2), 20, 1.0)
    with pytest.raises(ValueError, match=r"tokens is 13; it must be in \[0, 12\]"):
        context.advance(13)
    with pytest.raises(ValueError, match=r"length is 21; it must be in \[0, 20\]"):
        context.crop(21)
    with pytest.raises(ValueError, match="13 tokens do not fit behind a context of 20"):
        PagedKVCache([context]).check_room(13)


def test_a_cache_without_memory_is_an_error_that_says_how_much() -> None:
    with pytest.raises(MemoryError, match=r"pages is 2147483647; .* GiB"):
        new_pool(2**31 - 1)


def test_forward_through_pages_has_the_bits_of_a_contiguous_one(golden: Path, device: str) -> None:
    model = load_model(golden / "tiny-a", device=device)
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
            expected = contiguous(model, ids[b], length, block, causal=causal)
            assert torch.equal(together[b], expected), f"request {b}, causal={causal}"


def contiguous(model: Model, ids: Tensor, length: int, block: int, *, causal: bool) -> Tensor:
    cache = KVCache(model.config, 1, len(ids), device=model.device, dtype=model.dtype)
    model(ids[None, :length], cache, causal=True)
    cache.advance(length)
    return model(ids[None, length : length + block], cache, causal=causal)[0]
