"""Batches whose keys and values lie in float8."""

from pathlib import Path

import pytest
import torch

from dlm_core import Batch, Model, calibrated_kv_scales, load_model
from dlm_core.kv_scales import KVScales

PROMPTS = ([5, 8, 11, 14], [20, 22, 24], [40, 41, 42, 43, 44])


@pytest.fixture
def model(golden: Path, device: str) -> Model:
    return load_model(golden / "tiny-a", device=device)


@pytest.fixture
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


def test_pages_are_in_float8_and_half_as_large(model: Model, scales: KVScales) -> None:
    pool = Batch(model, pages=4, page_size=16, kv_scales=scales).pool
    assert pool.dtype == torch.float8_e4m3fn
    plain = Batch(model, pages=4, page_size=16).pool
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
