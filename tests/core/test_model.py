"""The model against transformers, and what its forward may and may not touch."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable

import pytest
import torch
from caches import cache_after, cache_for

from dlm_core import PRESETS, KVCache, Model, ModelConfig, random_model
from dlm_core.model import Rotary, yarn_frequencies
from dlm_core.paged_cache import PagedKVCache, PagePool
from dlm_kernels import DeviceError, new_error_word, raise_on_error
from dlm_kernels.backend import checked_contents

TWO_ROWS = "it must be [2, M]"
NAMES_TO_TRANSFORMERS = (("encoder.", "model."), ("diffusion_head.", "lm_head."))


@pytest.fixture(scope="module")
def tiny() -> Model:
    """Small, with a short original context, so that positions soon lie past it."""
    tiny = PRESETS["tiny"]
    rope = dataclasses.replace(tiny.rope, original_max_position_embeddings=32)
    return random_model(dataclasses.replace(tiny, vocab_size=128, rope=rope))


def tokens_of(shape: tuple[int, ...], model: Model, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, shape, generator=generator)


def in_bfloat16(model: Model) -> Model:
    return copy.deepcopy(model).to(torch.bfloat16)


def of_one_layer(model: Model) -> KVCache:
    config = dataclasses.replace(model.config, num_hidden_layers=1)
    return KVCache(config, 1, 128, device=model.device, dtype=model.dtype)


def of_one_page(model: Model, max_length: int) -> PagedKVCache:
    """A cache of 16 tokens over tensors of a caller, who states a bound on its length."""
    pool = PagePool(model.config, 1, 16, device=model.device, dtype=model.dtype)
    table = torch.zeros(1, 1, dtype=torch.int32)
    return PagedKVCache.over(pool, table, table[0], max_length)


def ministral3_config(config: ModelConfig):
    """The same decoder's config in transformers."""
    transformers = pytest.importorskip("transformers", reason="transformers is the reference here")
    rope = dataclasses.asdict(config.rope) | {"rope_type": "yarn"}
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
        " num_key_value_heads head_dim rms_norm_eps max_position_embeddings bos_token_id"
        " eos_token_id"
    )
    values = {name: getattr(config, name) for name in names.split()}
    return transformers.Ministral3Config(
        **values, rope_parameters=rope, tie_word_embeddings=False, pad_token_id=None
    )


@pytest.mark.parametrize("name", PRESETS)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    config = PRESETS[name]
    theirs = ministral3_config(config)
    from transformers.models.ministral3.modeling_ministral3 import Ministral3RotaryEmbedding

    rotary = Ministral3RotaryEmbedding(theirs)
    torch.testing.assert_close(
        yarn_frequencies(config.rope, config.head_dim), rotary.inv_freq, rtol=1e-5, atol=0
    )
    assert Rotary(config.rope, config.head_dim, device="cpu").magnitude == pytest.approx(
        rotary.attention_scaling
    )


@pytest.mark.parametrize(("mscale", "mscale_all_dim"), [(1.0, 1.0), (0.7, 1.3)])
def test_causal_logits_are_those_of_transformers(mscale: float, mscale_all_dim: float) -> None:
    rope = dataclasses.replace(
        PRESETS["tiny"].rope,
        original_max_position_embeddings=32,
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
    )
    model = random_model(dataclasses.replace(PRESETS["tiny"], vocab_size=128, rope=rope))
    theirs = ministral3_config(model.config)
    from transformers import Ministral3ForCausalLM

    reference = Ministral3ForCausalLM(theirs).double().eval()
    weights = {}
    for name, parameter in model.named_parameters():
        for ours, other in NAMES_TO_TRANSFORMERS:
            name = name.replace(ours, other)
        weights[name] = parameter.double()
    reference.load_state_dict(weights)

    tokens = tokens_of((2, 128), model)
    with torch.no_grad():
        expected = reference(tokens).logits
    logits = model.logits(model(tokens, cache_for(model, batch=2), causal=True))
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


def test_query_scale_is_exactly_one_within_the_original_context(tiny: Model) -> None:
    original = tiny.config.rope.original_max_position_embeddings
    positions = torch.tensor([[0, original - 1, original, 3 * original]])
    scale = tiny.rotary(positions).query_scale[0]
    assert scale[:2].tolist() == [1, 1]
    expected = torch.tensor([1 + 0.1 * math.log(2), 1 + 0.1 * math.log(4)])
    torch.testing.assert_close(scale[2:], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_runs_in_that_dtype(dtype: torch.dtype, device: str) -> None:
    model = random_model("tiny", device=device, dtype=dtype)
    cache = cache_for(model)
    logits = model.logits(model(tokens_of((1, 8), model).to(device), cache, causal=True))
    assert logits.dtype == dtype
    assert logits.isfinite().all()


def test_causal_forward_writes_only_the_block_s_places(tiny: Model) -> None:
    cache = cache_for(tiny, batch=2, capacity=64)
    for tensor in cache.keys + cache.values:
        tensor.fill_(torch.nan)
    cache.lengths.copy_(torch.tensor([3, 40]))
    cache.max_length = 40
    tiny(tokens_of((2, 5), tiny), cache, causal=True)
    expected = torch.zeros(2, 64, dtype=torch.bool)
    expected[0, 3:8] = expected[1, 40:45] = True
    for tensor in cache.keys[:1] + cache.values[:1]:  # layer 0: later ones read the NaN
        assert torch.equal(tensor.isfinite().all((2, 3)), expected)


def test_bidirectional_forward_leaves_the_cache_as_it_was(tiny: Model) -> None:
    cache = cache_after(tiny, tokens_of((1, 20), tiny))
    before = [tensor.clone() for tensor in cache.keys + cache.values]
    tiny(tokens_of((1, 16), tiny), cache, causal=False)
    after = cache.keys + cache.values
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old.view(torch.int32), new.view(torch.int32))  # bits: NaN too
    assert cache.lengths.tolist() == [20]


def test_block_that_does_not_fit_is_an_error_before_anything_runs(tiny: Model) -> None:
    cache = cache_for(tiny, capacity=16)
    cache.advance(10)
    with pytest.raises(ValueError, match="7 tokens do not fit .* 10 of its 16"):
        tiny(tokens_of((1, 7), tiny), cache, causal=True)
    with pytest.raises(ValueError, match="7 tokens do not fit"):
        cache.advance(7)
    assert (cache.max_length, cache.lengths.tolist()) == (10, [10])
    tiny(tokens_of((1, 7), tiny), cache, causal=False)  # writes nothing, so it fits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tiny: cache_for(tiny, batch=0), "batch is 0"),
        (lambda tiny: cache_for(tiny, batch=1.0), "batch is 1.0"),
        (lambda tiny: cache_for(tiny, capacity=0), "capacity is 0"),
        (lambda tiny: cache_for(tiny, capacity=10**6), "capacity is 1000000"),
        (lambda tiny: tiny(tokens_of((5,), tiny), cache_for(tiny, 2), causal=False), TWO_ROWS),
        (lambda tiny: tiny(tokens_of((3, 5), tiny), cache_for(tiny, 2), causal=False), TWO_ROWS),
        (lambda tiny: tiny([[5]], cache_for(tiny), causal=False), "tokens is a list"),
        (lambda tiny: tiny(torch.ones(1, 4), cache_for(tiny), causal=False), "tokens is torch.flo"),
        (
            lambda tiny: tiny(tokens_of((1, 257), tiny), cache_for(tiny), causal=False),
            "M, the length of tokens, is 257",
        ),
        (
            lambda tiny: tiny(tokens_of((1, 4), tiny), cache_for(in_bfloat16(tiny)), causal=True),
            "cache holds torch.bfloat16; it must hold torch.float32",
        ),
        (
            lambda tiny: tiny(tokens_of((1, 4), tiny), of_one_layer(tiny), causal=True),
            "cache has (layers, KV heads, head_dim) (1, 2, 32); the model has (4, 2, 32)",
        ),
        (
            lambda tiny: tiny(tokens_of((1, 4), tiny), of_one_page(tiny, 13), causal=True),
            "cache.max_length is 13; it must be at most 12, for the block goes behind it",
        ),
        (
            lambda tiny: tiny(
                tokens_of((1, 4), tiny), cache_for(tiny), causal=True, numerics="exact"
            ),
            "numerics is 'exact'; it must be one of batch_invariant, fast",
        ),
        (
            lambda tiny: tiny(
                tokens_of((1, 4), tiny), cache_for(tiny), causal=True, error=torch.zeros(1)
            ),
            "error is torch.float32; it must be int32",
        ),
    ],
)
def test_bad_argument_is_named(call: Callable, message: str, tiny: Model) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call(tiny)


@pytest.mark.parametrize("outside", [-1, 67, 2**31 - 1])
def test_id_outside_the_vocabulary_is_clamped_and_reported(outside: int, model: Model) -> None:
    cache, error = cache_for(model), new_error_word(model.device)
    tokens = torch.tensor([[5, outside, 6]], device=model.device)
    clamped = tokens.clamp(0, 66)
    hidden = model(tokens, cache, causal=False, error=error)
    assert torch.equal(hidden, model(clamped, cache, causal=False))
    with pytest.raises(DeviceError, match="id is outside the vocabulary"):
        raise_on_error(error)
    message = rf"tokens holds {outside}; ids must be in \[0, 67\)"
    with checked_contents(), pytest.raises(ValueError, match=message):
        model(tokens, cache, causal=False)


@pytest.mark.parametrize("length", [-3, 200, 2**31 - 1])
def test_length_beyond_the_cache_is_reported_and_writes_no_other_request(
    length: int, tiny: Model
) -> None:
    cache, error = cache_for(tiny, batch=2), new_error_word(tiny.device)
    cache.lengths[1] = length
    before = [tensor.zero_()[0, 4:].clone() for tensor in (*cache.keys, *cache.values)]
    tiny(tokens_of((2, 4), tiny), cache, causal=True, error=error)
    with pytest.raises(DeviceError, match="a context length is negative or beyond the cache"):
        raise_on_error(error)
    after = [tensor[0, 4:] for tensor in (*cache.keys, *cache.values)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def merged_of(model: Model) -> list:
    return [
        merged
        for layer in model.encoder.layers
        for merged in (layer.self_attn.qkv, layer.mlp.gate_up)
    ]


def assert_laid_together(model: Model) -> None:
    """Each merged weight is the checkpoint's own, one after the other in one storage."""
    for merged in merged_of(model):
        whole = merged.weight
        assert torch.equal(whole, torch.cat([layer.weight for layer in merged.layers]))
        assert whole.data_ptr() == merged.layers[0].weight.data_ptr() == merged.weight.data_ptr()


def test_merged_weights_are_views_of_the_checkpoints_own(tiny: Model) -> None:
    assert_laid_together(tiny)
    parameters = {p.untyped_storage().data_ptr(): p for p in tiny.parameters()}
    held = sum(p.untyped_storage().nbytes() for p in parameters.values())
    assert held == sum(p.nbytes for p in tiny.parameters()), "a weight is held twice"


@pytest.mark.parametrize("move", [copy.deepcopy, in_bfloat16])
def test_layers_that_moved_are_laid_together_again_once(tiny: Model, move: Callable) -> None:
    moved = move(tiny)
    assert_laid_together(moved)
    for merged in merged_of(moved):
        merged.layers[1].weight.fill_(7)
        assert (merged.weight == 7).any(1).sum() == len(merged.layers[1].weight)


def test_neighbours_in_memory_are_not_taken_for_one_weight(tiny: Model) -> None:
    """As an allocator may place what was moved: end to end, in storages of their own."""
    merged = merged_of(copy.deepcopy(tiny))[0]
    weights = [layer.weight.detach() for layer in merged.layers]
    memory = torch.cat([weight.flatten() for weight in weights]).numpy()
    at = 0
    for layer, weight in zip(merged.layers, weights, strict=True):
        own = torch.from_numpy(memory[at : at + weight.numel()])
        layer.weight.data = own.view_as(weight)
        at += weight.numel()
    assert torch.equal(merged.weight, torch.cat(weights))
