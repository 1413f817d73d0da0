"""Models in few bits: what is quantised, what it computes, and that every mode decodes it."""

import json
from pathlib import Path

import pytest
import torch
from caches import cache_for
from torch import Tensor

from dlm_core import Batch, Model, cli, generate, load_model, random_model
from dlm_core.quantization import KINDS, linears_of, quantize_model, weight_bytes
from dlm_kernels import quantize_weight

TINY = Path(__file__).parents[1] / "golden" / "tiny-a"
PROMPTS = [[8, 11, 14, 17], [20, 22, 24], [5, 60, 7, 33, 12, 50]]
OPTIONS = {
    "autoregressive": {},
    "diffusion": {"threshold": 0.9},
    "linear_spec": {},
    "quadratic_spec": {"block_length": 4},
}
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=DTYPES)
def quantised(kind: str, device: str, request: pytest.FixtureRequest) -> Model:
    """The golden model, with its draft LoRA, in few bits."""
    return load_model(TINY, device=device, dtype=request.param, weights=kind)


def hidden_states(model: Model, tokens: Tensor, **options: object) -> Tensor:
    return model(tokens.to(model.device), cache_for(model, len(tokens)), **options)


def dequantised(kind: str) -> Model:
    """A plain model whose weights are those that few bits stand for."""
    model = load_model(TINY)
    for _, linear in linears_of(model):
        linear.weight.copy_(quantize_weight(linear.weight, kind).dequantized())
    return model


def test_all_products_of_the_layers_are_quantised_and_nothing_else(quantised: Model) -> None:
    plain = load_model(TINY, device=quantised.device, dtype=quantised.dtype)
    expected, linears = dict(linears_of(plain)), dict(linears_of(quantised))
    assert linears.keys() == expected.keys()
    stored = {name: weight for name, weight in plain.named_parameters() if "_proj" in name}
    held = sum(weight.numel() for weight in stored.values())
    assert sum(linear.weight.numel() for linear in expected.values()) == held
    assert any("draft_o_proj" in name for name in linears)
    for name, linear in linears.items():
        wanted = quantize_weight(expected[name].weight, linear.quantized.kind)
        assert torch.equal(linear.quantized.dequantized(), wanted.dequantized()), name
    kept = dict(quantised.named_parameters())
    assert kept.keys() == dict(plain.named_parameters()).keys() - stored.keys()
    for name, weight in kept.items():
        assert torch.equal(weight, plain.get_parameter(name)), name
    few_bits = sum(linear.quantized.n_bytes for linear in linears.values())
    assert weight_bytes(quantised) == few_bits + sum(weight.nbytes for weight in kept.values())
    assert (quantised.device, quantised.dtype) == (plain.device, plain.dtype)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_it_computes_what_its_weights_stand_for(causal: bool, lora: bool, kind: str) -> None:
    tokens = torch.randint(3, 60, (3, 20), generator=torch.Generator().manual_seed(1))
    options = {"causal": causal, "lora": lora}
    few_bits = hidden_states(load_model(TINY, weights=kind), tokens, **options)
    expected = hidden_states(dequantised(kind), tokens, **options)
    torch.testing.assert_close(few_bits, expected, rtol=1e-4, atol=1e-4)
    other = hidden_states(load_model(TINY), tokens, **options)
    assert (other - expected).abs().max() > 1e-2, "quantising changes what it computes"


def test_rows_have_the_same_bits_in_any_batch(quantised: Model) -> None:
    tokens = torch.randint(3, 60, (5, 33), generator=torch.Generator().manual_seed(2))
    for causal in (True, False):
        together = hidden_states(quantised, tokens, causal=causal)
        for row in range(len(tokens)):
            alone = hidden_states(quantised, tokens[row : row + 1], causal=causal)
            assert torch.equal(alone[0], together[row])
    first = hidden_states(quantised, tokens[:1, :1], causal=True)
    assert torch.equal(first[0, 0], hidden_states(quantised, tokens, causal=True)[0, 0])


def test_every_mode_decodes_alone_as_in_a_batch(quantised: Model) -> None:
    batch, alone, requests = Batch(quantised, pages=64), {}, {}
    for mode, options in OPTIONS.items():
        for i, prompt in enumerate(PROMPTS):
            alone[mode, i] = generate(quantised, prompt, 7, mode, **options)
            requests[mode, i] = batch.submit(prompt, 7, mode, **options)
    batch.run()
    assert {key: request.generation for key, request in requests.items()} == alone
    for i in range(len(PROMPTS)):
        autoregressive = alone["autoregressive", i].tokens
        for mode in ("linear_spec", "quadratic_spec"):
            assert alone[mode, i].tokens == autoregressive


def test_random_models_are_the_same_before_they_are_quantised(kind: str) -> None:
    quantised = random_model("tiny", weights=kind, seed=5)
    later = random_model("tiny", seed=5)
    quantize_model(later, kind)
    pairs = list(zip(linears_of(quantised), linears_of(later), strict=True))
    assert pairs
    for (_, mine), (_, other) in pairs:
        assert torch.equal(mine.quantized.dequantized(), other.quantized.dequantized())
    assert torch.equal(quantised.diffusion_head.weight, later.diffusion_head.weight)


def test_what_cannot_be_done_is_named_and_changes_nothing(kind: str) -> None:
    model = random_model("tiny")
    with pytest.raises(ValueError, match="kind is 'int2'; it must be one of fp8, int8, int4"):
        quantize_model(model, "int2")
    *_, (name, last) = linears_of(model)
    last.weight[1, 2] = torch.inf
    with pytest.raises(ValueError, match=rf"the weight of {name} holds inf or NaN"):
        quantize_model(model, kind)
    assert all(linear.quantized is None for _, linear in linears_of(model))
    last.weight[1, 2] = 0
    quantize_model(model, kind)
    with pytest.raises(ValueError, match=f"is in {kind} already"):
        quantize_model(model, "int8")
    for make in (lambda **how: load_model(TINY, **how), lambda **how: random_model("8b", **how)):
        with pytest.raises(ValueError, match="weights is 'int2'; it must be one of fp8, int8, in"):
            make(weights="int2")


def test_generate_takes_a_quantization(kind: str, capsys: pytest.CaptureFixture) -> None:
    command = ["generate", str(TINY), "--tokens", "8 11 14 17", "--max-new-tokens", "12"]
    assert cli.main([*command, "--device", "cpu", "--json", "--quantization", kind]) == 0
    expected = generate(load_model(TINY, weights=kind), [8, 11, 14, 17], 12, "diffusion")
    shown = json.loads(capsys.readouterr().out)
    assert shown["tokens"] == expected.tokens
    assert shown["confidences"] == [[round(c, 4) for c in s] for s in expected.confidences]


@pytest.mark.gpu
def test_a_device_never_holds_what_is_quantised_whole(kind: str) -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = load_model(TINY, device="cuda", weights=kind)
    peak = torch.cuda.max_memory_allocated() - before
    shapes = [linear.quantized.shape for _, linear in linears_of(model)]
    sizes = [out_features * in_features for out_features, in_features in shapes]
    assert peak < weight_bytes(model) + 4 * sum(sizes) / 2, "half of them would be too many"


def test_a_quantised_model_says_that_it_cannot_be_moved_or_saved() -> None:
    model = load_model(TINY, weights="int8")
    with pytest.raises(TypeError, match="the model is in int8 and stays where and as it is"):
        model.to(torch.bfloat16)
    with pytest.raises(TypeError, match="the model is in int8; it has no state_dict"):
        model.state_dict()
