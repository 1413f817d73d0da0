"""Caches in float8: what is written comes back as its scale promises, through pages too."""

import pytest
import torch
from caches import cache_after, write
from torch import Tensor

from dlm_core import PRESETS, Batch, KVCache, Model
from dlm_core.calibration import calibrated_kv_scales
from dlm_core.kv_scales import KVScales
from dlm_core.paged_cache import Context, PagedKVCache, PagePool
from dlm_kernels import block_attention

CONFIG = PRESETS["tiny"]
FLOAT8 = torch.float8_e4m3fn
HEADS = CONFIG.num_key_value_heads
LAYERS = range(CONFIG.num_hidden_layers)


def random_scales(seed: int = 0) -> KVScales:
    generator = torch.Generator().manual_seed(seed)
    return KVScales(*(torch.rand(2, len(LAYERS), HEADS, generator=generator) / 50 + 0.001))


def rows(batch: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, HEADS, CONFIG.head_dim, generator=generator)


def append(cache: KVCache | PagedKVCache, keys: Tensor, values: Tensor) -> None:
    """As a causal forward does, to every layer the same."""
    for layer in LAYERS:
        write(cache, layer, keys, values)
    cache.advance(keys.shape[1])


def assert_stored(stored: Tensor, scale: Tensor, given: Tensor) -> None:
    """e4m3 keeps 4 bits of a number, down to steps of 2 ** -9 for the smallest."""
    wanted = given.clamp(-448 * scale[:, None], 448 * scale[:, None])
    error = (stored.float() * scale[:, None] - wanted).abs()
    allowed = (wanted.abs() / 16).maximum(scale[:, None] * 2**-10) * 1.0001
    assert (error <= allowed).all()


def test_a_cache_has_scales_only_in_float8() -> None:
    where = {"device": "cpu", "dtype": torch.float32}
    for cache in (KVCache(CONFIG, 1, 4, **where), PagePool(CONFIG, 1, 16, **where)):
        assert cache.key_scales == cache.value_scales == [None for _ in LAYERS]
    where["dtype"] = FLOAT8
    for cache in (KVCache(CONFIG, 1, 4, **where), PagePool(CONFIG, 1, 16, **where)):
        for scales in (cache.key_scales, cache.value_scales):
            assert len(scales) == len(LAYERS)
            assert all(torch.equal(x, torch.ones(HEADS)) for x in scales)


def test_pages_hold_the_bits_of_a_contiguous_cache_and_survive_sharing_and_swapping() -> None:
    scales = random_scales()
    keys, values = rows(1, 40, seed=1), rows(1, 40, seed=2)
    plain = KVCache(CONFIG, 1, 40, device="cpu", dtype=FLOAT8, scales=scales)
    append(plain, keys, values)
    pool = PagePool(CONFIG, 8, 16, device="cpu", dtype=FLOAT8, scales=scales)
    first = Context(pool)
    first.reserve(40)
    append(PagedKVCache([first]), keys, values)
    pool.publish(list(range(40)), first.pages)

    second = Context(pool, list(range(40)))  # two whole pages of the first
    second.crop(20)
    second.reserve(4)
    append(PagedKVCache([second]), -keys[:, 20:24], -values[:, 20:24])
    first.swap_out()
    other = Context(pool)
    other.reserve(16)
    append(PagedKVCache([other]), rows(1, 16), rows(1, 16))
    first.swap_in()

    for layer in LAYERS:
        for contiguous, pages in ((plain.keys, pool.keys), (plain.values, pool.values)):
            expected = contiguous[layer][0].view(torch.uint8)
            of_first = pages[layer][torch.tensor(first.pages)].flatten(0, 1).view(torch.uint8)
            assert torch.equal(of_first[:40], expected)
            of_second = pages[layer][torch.tensor(second.pages)].flatten(0, 1).view(torch.uint8)
            assert torch.equal(of_second[:20], expected[:20])
            assert not torch.equal(of_second[20:24], expected[20:24])
            negated = -(of_second[20:24].view(FLOAT8).float())
            assert torch.equal(negated, expected[20:24].view(FLOAT8).float())


def test_attention_takes_the_scales_of_a_cache() -> None:
    """Over scales that differ by head, against attention over what float8 keeps of the rows."""
    scales, layer = random_scales(), 1
    context = Context(PagePool(CONFIG, 4, 16, device="cpu", dtype=FLOAT8, scales=scales))
    context.reserve(30)
    cache = PagedKVCache([context])
    keys, values = rows(1, 30, seed=3) * 0.3, rows(1, 30, seed=4) * 0.3
    append(cache, keys, values)
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(1, 6, CONFIG.num_attention_heads, CONFIG.head_dim, generator=generator)
    lengths = torch.tensor([24], dtype=torch.int32)  # the last six are the causal block's
    k_scale, v_scale = cache.key_scales[layer], cache.value_scales[layer]
    options = {"k_scale": k_scale, "v_scale": v_scale, "block_table": cache.block_table}
    actual = block_attention(q, cache.keys[layer], cache.values[layer], lengths, **options)
    held = [
        (x / scale[layer][:, None]).to(FLOAT8).float() * scale[layer][:, None]
        for x, scale in ((keys, scales.keys), (values, scales.values))
    ]
    torch.testing.assert_close(actual, block_attention(q, *held, lengths), atol=1e-5, rtol=1e-5)


def test_calibration_makes_the_largest_just_fit(model: Model, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 60, (2, 300), generator=generator).to(device)  # two forwards
    scales = calibrated_kv_scales(model, tokens)
    plain = cache_after(model, tokens[:, :200], capacity=300)
    model(tokens[:, 200:], plain, causal=True)
    for tensors, ours in ((plain.keys, scales.keys), (plain.values, scales.values)):
        largest = torch.stack([x.abs().amax((0, 1, 3)) for x in tensors])
        torch.testing.assert_close(ours * 448, largest)
    cache = KVCache(model.config, 2, 300, device=device, dtype=FLOAT8, scales=scales)
    for layer in range(model.config.num_hidden_layers):
        write(cache, layer, plain.keys[layer], plain.values[layer])
        assert_stored(cache.keys[layer], scales.keys[layer], plain.keys[layer])
        assert_stored(cache.values[layer], scales.values[layer], plain.values[layer])
        for stored in (cache.keys[layer], cache.values[layer]):
            assert (stored.float().abs().amax((0, 1, 3)) == 448).all()


@pytest.mark.parametrize("make", ["cache", "pool"])
def test_scales_that_do_not_fit_are_named(make: str) -> None:
    good = random_scales()
    for scales, dtype, exception, message in (
        (good, torch.float32, ValueError, "scales are given; a cache in torch.float32 has none"),
        (good._replace(keys=good.keys[:1]), FLOAT8, ValueError, r"scales.keys has shape \[1, "),
        (good._replace(values=good.values.double()), FLOAT8, TypeError, "scales.values is .*64"),
        (good._replace(values=good.values * 0), FLOAT8, ValueError, "scales.values holds .*posit"),
        (good._replace(keys=good.keys / 0), FLOAT8, ValueError, "scales.keys holds .*finite"),
    ):
        options = {"device": "cpu", "dtype": dtype, "scales": scales}
        with pytest.raises(exception, match=message):
            KVCache(CONFIG, 1, 4, **options) if make == "cache" else PagePool(CONFIG, 1, **options)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([[5, 6]], TypeError, "tokens is a list; it must be a torch.Tensor"),
        (torch.tensor([5, 6]), ValueError, r"tokens has shape \[2\]; it must be \[batch, n\]"),
        (torch.zeros(1, 0, dtype=torch.long), ValueError, r"shape \[1, 0\]; .* n from 1 to 768"),
        (torch.tensor([[5, 67]]), ValueError, r"tokens holds 67; ids must be in \[0, 67\)"),
        (torch.tensor([[5, -1]]), ValueError, "tokens holds -1"),
    ],
)
def test_text_that_cannot_calibrate_is_named(model: Model, tokens, error, message: str) -> None:
    with pytest.raises(error, match=message):
        calibrated_kv_scales(model, tokens)


# --- whole batches

PROMPTS = ([5, 8, 11, 14], [20, 22, 24], [40, 41, 42, 43, 44])


@pytest.fixture(scope="module")
def scales(model: Model) -> KVScales:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, model.config.vocab_size, (2, 64), generator=generator)
    return calibrated_kv_scales(model, tokens.to(model.device))


def tokens_of(model: Model, scales: KVScales | None, requests: list[tuple]) -> list[list[int]]:
    """What each (prompt, mode) generates, all in one batch."""
    batch = Batch(model, pages=60, page_size=16, kv_scales=scales)
    submitted = [batch.submit(prompt, 12, mode) for prompt, mode in requests]
    batch.run()
    return [request.generation.tokens for request in submitted]


def test_pages_of_a_batch_take_a_byte_a_number(model: Model, scales: KVScales) -> None:
    pool = Batch(model, pages=4, page_size=16, kv_scales=scales).pool
    plain = Batch(model, pages=4, page_size=16).pool
    assert pool.dtype == FLOAT8
    assert pool.keys[0].nbytes * model.dtype.itemsize == plain.keys[0].nbytes


def test_self_speculation_stays_lossless_and_a_batch_changes_nothing(
    model: Model, scales: KVScales
) -> None:
    modes = ("autoregressive", "linear_spec", "quadratic_spec")
    requests = [(prompt, mode) for prompt in PROMPTS for mode in modes]
    together = tokens_of(model, scales, requests)
    for i in range(0, len(requests), 3):
        assert together[i] == together[i + 1] == together[i + 2]
    alone = [tokens_of(model, scales, [request])[0] for request in requests]
    assert together == alone


def test_a_trained_model_says_the_same_as_with_a_whole_cache(
    model: Model, scales: KVScales
) -> None:
    """tiny-a goes on counting by far, whatever 3 bits of mantissa do to its keys."""
    requests = [(prompt, "diffusion") for prompt in PROMPTS[:1]]
    assert tokens_of(model, scales, requests) == tokens_of(model, None, requests)


def test_scales_matter(model: Model, scales: KVScales) -> None:
    """That the tests above can fail: with scales far too small every key is cut off."""
    cut = KVScales(scales.keys / 1e4, scales.values / 1e4)
    requests = [(prompt, "autoregressive") for prompt in PROMPTS]
    assert tokens_of(model, cut, requests) != tokens_of(model, scales, requests)


def test_scales_of_another_model_are_refused(model: Model, scales: KVScales) -> None:
    fewer = KVScales(scales.keys[1:], scales.values[1:])
    with pytest.raises(ValueError, match="scales.keys has shape .*; it must be"):
        Batch(model, pages=4, kv_scales=fewer)
    with pytest.raises(TypeError, match="kv_scales is a bool; it must be a KVScales"):
        Batch(model, pages=4, kv_scales=True)
