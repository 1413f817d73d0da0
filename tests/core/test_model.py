"""The model against transformers, and what its forward may and may not touch."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch

from dlm_core import PRESETS, KVCache, Model, ModelConfig, load_model, random_model
from dlm_core.model import RMSNorm, Rotary, yarn_frequencies
from dlm_kernels import DeviceError, new_error_word, raise_on_error

NAMES_TO_TRANSFORMERS = (("encoder.", "model."), ("diffusion_head.", "lm_head."))


@pytest.fixture(scope="module")
def tiny() -> Model:
    """Small, with a short original context, so that positions soon lie past it."""
    tiny = PRESETS["tiny"]
    rope = dataclasses.replace(tiny.rope, original_max_position_embeddings=32)
    return random_model(dataclasses.replace(tiny, vocab_size=128, rope=rope))


def cache_for(model: Model, batch: int = 1, capacity: int = 128) -> KVCache:
    return KVCache(model.config, batch, capacity, device=model.device, dtype=model.dtype)


def tokens_of(shape: tuple[int, ...], model: Model, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, shape, generator=generator)


def ministral3_config(config: ModelConfig, **changes):
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
        **(values | changes), rope_parameters=rope, tie_word_embeddings=False, pad_token_id=None
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


@pytest.mark.parametrize("name", ["3b", "8b", "14b"])
def test_published_config_gives_every_name_and_shape(name: str, golden: Path) -> None:
    config = ModelConfig.from_json(golden / "configs" / f"{name}.json")
    model = Model(config, device="meta", dtype=torch.bfloat16)
    hidden, layers, intermediate = {
        "3b": (3072, 26, 9216),
        "8b": (4096, 34, 14336),
        "14b": (5120, 40, 16384),
    }[name]
    expected = {
        "encoder.embed_tokens.weight": (131072, hidden),
        "encoder.norm.weight": (hidden,),
        "diffusion_head.weight": (131072, hidden),
    }
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        expected |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (4096, hidden),
            f"{layer}.self_attn.k_proj.weight": (1024, hidden),
            f"{layer}.self_attn.v_proj.weight": (1024, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, 4096),
            f"{layer}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{layer}.mlp.up_proj.weight": (intermediate, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, intermediate),
        }
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_query_scale_is_exactly_one_within_the_original_context(tiny: Model) -> None:
    original = tiny.config.rope.original_max_position_embeddings
    positions = torch.tensor([[0, original - 1, original, 3 * original]])
    scale = tiny.rotary(positions).query_scale[0]
    assert scale[:2].tolist() == [1, 1]
    expected = torch.tensor([1 + 0.1 * math.log(2), 1 + 0.1 * math.log(4)])
    torch.testing.assert_close(scale[2:], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_sums_in_float32(dtype: torch.dtype) -> None:
    norm = RMSNorm(4096, 1e-5, device="cpu", dtype=dtype)
    norm.weight.data.fill_(1)
    x = torch.randn(4, 4096, generator=torch.Generator().manual_seed(0)).to(dtype) * 100
    expected = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    _, normed = norm(x, None, "invariant")
    torch.testing.assert_close(normed.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_runs_in_that_dtype(dtype: torch.dtype, device: str) -> None:
    model = random_model("tiny", device=device, dtype=dtype)
    cache = cache_for(model)
    logits = model.logits(model(tokens_of((1, 8), model).to(device), cache, causal=True))
    assert logits.dtype == dtype
    assert logits.isfinite().all()


def test_chunks_give_what_one_forward_gives(tiny: Model) -> None:
    tokens = tokens_of((1, 100), tiny)
    whole = tiny(tokens, cache_for(tiny), causal=True)
    cache = cache_for(tiny)
    chunks = []
    for chunk in tokens.split([1, 63, 32, 4], dim=1):
        chunks.append(tiny(chunk, cache, causal=True))
        cache.advance(chunk.shape[1])
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_ragged_batch_gives_what_each_request_alone_gives(tiny: Model, causal: bool) -> None:
    context, block = tokens_of((2, 60), tiny), tokens_of((2, 16), tiny, seed=1)
    batched = cache_for(tiny, batch=2)
    tiny(context, batched, causal=True)
    batched.advance(60)
    batched.lengths.copy_(torch.tensor([7, 60]))
    together = tiny(block, batched, causal=causal)
    for b, length in enumerate((7, 60)):
        cache = cache_for(tiny)
        tiny(context[b : b + 1, :length], cache, causal=True)
        cache.advance(length)
        alone = tiny(block[b : b + 1], cache, causal=causal)
        torch.testing.assert_close(together[b : b + 1], alone, atol=1e-4, rtol=0)


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
    cache = cache_for(tiny)
    tiny(tokens_of((1, 20), tiny), cache, causal=True)
    cache.advance(20)
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
    ("name", "value"), [("batch", 0), ("capacity", 0), ("capacity", 10**6), ("batch", 1.0)]
)
def test_bad_cache_size_is_named(name: str, value: float, tiny: Model) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name} is {value}"):
        cache_for(tiny, **{name: value})


@pytest.mark.parametrize("shape", [(5,), (3, 5)], ids=["one-dimension", "other-batch"])
def test_tokens_of_another_batch_are_an_error(shape: tuple[int, ...], tiny: Model) -> None:
    with pytest.raises(ValueError, match=r"tokens has shape .* it must be \[2, M\]"):
        tiny(tokens_of(shape, tiny), cache_for(tiny, batch=2), causal=False)


def test_ill_typed_arguments_are_named(tiny: Model) -> None:
    cache = cache_for(tiny)
    with pytest.raises(TypeError, match="tokens is a list"):
        tiny([[5]], cache, causal=False)
    with pytest.raises(TypeError, match="tokens is torch.float32"):
        tiny(torch.ones(1, 4, device=tiny.device), cache, causal=False)
    with pytest.raises(ValueError, match="M, the length of tokens, is 257"):
        tiny(tokens_of((1, 257), tiny), cache, causal=False)
    other = KVCache(tiny.config, 1, 64, device=tiny.device, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="cache holds torch.bfloat16; it must hold torch.float32"):
        tiny(tokens_of((1, 4), tiny), other, causal=True)


@pytest.mark.parametrize("outside", [-1, 67, 2**31 - 1])
def test_id_outside_the_vocabulary_is_clamped_and_reported(
    outside: int, golden: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(golden / "tiny-a", device=device)
    cache, error = cache_for(model), new_error_word(device)
    tokens = torch.tensor([[5, outside, 6]], device=device)
    clamped = tokens.clamp(0, 66)
    hidden = model(tokens, cache, causal=False, error=error)
    assert torch.equal(hidden, model(clamped, cache, causal=False))
    with pytest.raises(DeviceError, match="id is outside the vocabulary"):
        raise_on_error(error)
    monkeypatch.setenv("DLM_CHECK", "1")
    with pytest.raises(ValueError, match=rf"tokens holds {outside}; ids must be in \[0, 67\)"):
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


def test_merged_weights_are_views_of_the_checkpoints_own(tiny: Model) -> None:
    for merged in merged_of(tiny):
        whole = merged.weight
        assert torch.equal(whole, torch.cat([layer.weight for layer in merged.layers]))
        assert whole.data_ptr() == merged.layers[0].weight.data_ptr() == merged.weight.data_ptr()
    parameters = {p.untyped_storage().data_ptr(): p for p in tiny.parameters()}
    held = sum(p.untyped_storage().nbytes() for p in parameters.values())
    assert held == sum(p.nbytes for p in tiny.parameters()), "a weight is held twice"


@pytest.mark.parametrize(
    "move",
    [copy.deepcopy, lambda model: copy.deepcopy(model).to(torch.bfloat16)],
    ids=["copied", "converted"],
)
def test_layers_that_moved_are_laid_together_again_once(tiny: Model, move) -> None:
    moved = move(tiny)
    for merged in merged_of(moved):
        whole = merged.weight
        assert torch.equal(whole, torch.cat([layer.weight for layer in merged.layers]))
        assert whole.data_ptr() == merged.layers[0].weight.data_ptr() == merged.weight.data_ptr()
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
