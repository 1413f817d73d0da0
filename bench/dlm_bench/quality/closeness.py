"""How far few bits move a model's logits from those of the unquantised model, on the same tokens.

The tokens are the first block of every right answer, after its prompt: once causally, and once as
the first denoising step sees it, all masks after the seed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dlm_core import KVScales, Model
from dlm_core.quantization import linears_of
from dlm_kernels.quantized_weight import QuantizedWeight

from .decode import Passage, after_prompt
from .records import Apart, Closeness


@torch.inference_mode()
def closeness(
    model: Model, plain: Model, passages: Sequence[Passage], kv_scales: KVScales | None = None
) -> Closeness:
    """The logits of `model` beside those of `plain`, which is the same without quantisation.

    kv_scales: with them `model` keeps its cache in float8.
    """
    causal, denoise = [], []
    for passage in passages:
        ours, theirs = _logits(model, passage, kv_scales), _logits(plain, passage, None)
        causal.append(_compared(ours[0], theirs[0]))
        denoise.append(_compared(ours[1], theirs[1]))
    return Closeness(
        weights=model.quantization,
        float8_cache=kv_scales is not None,
        bits=bits_a_weight(model),
        rows=sum(map(len, causal)),
        causal=_summary(torch.cat(causal)),
        denoise=_summary(torch.cat(denoise)),
    )


def bits_a_weight(model: Model) -> float:
    """Bits that a weight of the layers' matrices takes, with scales and filling up."""
    held = [linear.quantized or linear.weight for _, linear in linears_of(model)]
    n_bytes = [x.n_bytes if isinstance(x, QuantizedWeight) else x.nbytes for x in held]
    return 8 * sum(n_bytes) / sum(x.shape[0] * x.shape[1] for x in held)


def _logits(model: Model, passage: Passage, kv_scales: KVScales | None) -> tuple[Tensor, Tensor]:
    """Causal and denoising logits [rows, vocab] for the tokens after the seed."""
    block = model.config.block_size
    tokens = torch.tensor([passage.answer[:block]], device=model.device)
    cache = after_prompt(model, passage.prompt, tokens.shape[1], kv_scales)
    noisy = tokens.new_full((1, block), model.config.mask_token_id)
    noisy[0, 0] = tokens[0, 0]
    denoised = model(noisy, cache, causal=False)[0, 1 : tokens.shape[1]]
    causal = model(tokens, cache, causal=True)[0, :-1]
    return model.logits(causal), model.logits(denoised)


def _compared(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of each of the rows, float64 [rows, 6]: mean and largest difference, KL in nats, whether the
    likeliest token is the same, and the mean and the mean square of `theirs`.
    """
    ours, theirs = ours.double(), theirs.double()
    apart = (ours - theirs).abs()
    expected = theirs.log_softmax(-1)
    kl = (expected.exp() * (expected - ours.log_softmax(-1))).sum(-1)
    same = (ours.argmax(-1) == theirs.argmax(-1)).double()
    moments = theirs.mean(-1), theirs.square().mean(-1)
    return torch.stack([apart.mean(-1), apart.amax(-1), kl, same, *moments], -1)


def _summary(rows: Tensor) -> Apart:
    mean, _, kl, same, first, second = rows.mean(0).tolist()
    deviation = (second - first**2) ** 0.5
    return Apart(mean / deviation, rows[:, 1].max().item() / deviation, kl, same)
