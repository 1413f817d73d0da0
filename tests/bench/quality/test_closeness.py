"""How far few bits move logits: against figures worked out row by row."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlm_bench.quality.closeness import bits_a_weight, closeness
from dlm_bench.quality.decode import Passage
from dlm_core import KVCache, KVScales, Model, load_model
from dlm_core.calibration import calibrated_kv_scales

# The second answer is longer than a block of 8; of the third no token comes after the seed.
PASSAGES = [
    Passage([1, 5, 8, 11], [14, 17, 20, 2]),
    Passage([1, 30, 31], [*range(32, 44), 2]),
    Passage([1, 9], [2]),
]


def plain_rows(model: Model, kind: str, scales: KVScales | None = None) -> list[Tensor]:
    """Logits for each known token after the seed, each from a context run anew."""
    rows, mask = [], model.config.mask_token_id
    for prompt, answer in PASSAGES:
        for i in range(1, min(8, len(answer))):
            dtype = model.dtype if scales is None else torch.float8_e4m3fn
            cache = KVCache(model.config, 1, 64, device="cpu", dtype=dtype, scales=scales)
            model(torch.tensor([prompt]), cache, causal=True)
            cache.advance(len(prompt))
            block = answer[:i] if kind == "causal" else [answer[0], *[mask] * 7]
            hidden = model(torch.tensor([block]), cache, causal=kind == "causal")
            rows.append(model.logits(hidden)[0, i - 1 if kind == "causal" else i].double())
    return rows


@pytest.mark.parametrize("way", ["int4 weights", "float8 cache"])
def test_differences_are_those_of_the_logits_row_by_row(
    model: Model, checkpoint: Path, way: str
) -> None:
    ours, scales = model, None
    if way == "float8 cache":
        scales = calibrated_kv_scales(model, torch.tensor([range(4, 60)]))
    else:
        ours = load_model(checkpoint, weights="int4")
    found = closeness(ours, model, PASSAGES, scales)
    assert (found.weights, found.float8_cache) == (ours.quantization, scales is not None)
    assert found.rows == 3 + 7
    for kind in ("causal", "denoise"):
        got = torch.stack(plain_rows(ours, kind, scales))
        expected = torch.stack(plain_rows(model, kind))
        deviation = expected.std(correction=0)
        apart = (got - expected).abs() / deviation
        kl = torch.nn.functional.kl_div(
            got.log_softmax(-1), expected.log_softmax(-1), reduction="batchmean", log_target=True
        )
        same = (got.argmax(-1) == expected.argmax(-1)).double().mean()
        measured = getattr(found, kind)
        assert measured.mean == pytest.approx(apart.mean().item(), rel=1e-4)
        assert measured.largest == pytest.approx(apart.max().item(), rel=1e-4)
        assert measured.kl == pytest.approx(kl.item(), rel=1e-3, abs=1e-9)
        assert measured.same == same and measured.mean > 0


def test_bits_count_scales_and_filling_up(model: Model, checkpoint: Path) -> None:
    bits = {kind: bits_a_weight(load_model(checkpoint, weights=kind)) for kind in ("int8", "int4")}
    assert bits_a_weight(model) == 32 and bits["int8"] > 8 and 4 < bits["int4"]
