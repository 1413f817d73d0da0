"""Models whose layers hold their matrices in 8 or 4 bits; see `dlm_kernels.quantized_weight`.

Every product of the decoder layers is quantised, the draft's projection too: they are what a
forward reads. The embedding is looked up, not read; the head decides which token is the likeliest
and stays as it is, as do the norms. Activations and caches keep the model's dtype.
"""

from collections.abc import Iterator

from dlm_kernels import quantize_weight
from dlm_kernels.quantized_weight import LARGEST

from .model import Device, Linear, MergedLinear, Model

KINDS = tuple(LARGEST)


def linears_of(model: Model) -> Iterator[tuple[str, Linear | MergedLinear]]:
    """Name and layer of every product that the decoder layers run."""
    for i, layer in enumerate(model.encoder.layers):
        attention, mlp = f"encoder.layers.{i}.self_attn", f"encoder.layers.{i}.mlp"
        yield f"{attention}.qkv", layer.self_attn.qkv
        yield f"{attention}.o_proj", layer.self_attn.o_proj
        if layer.self_attn.draft_o_proj is not None:
            yield f"{attention}.draft_o_proj", layer.self_attn.draft_o_proj
        yield f"{mlp}.gate_up", layer.mlp.gate_up
        yield f"{mlp}.down_proj", layer.mlp.down_proj


def quantize_model(model: Model, kind: str, *, device: Device | None = None) -> None:
    """Replace the weights of the decoder layers by weights of `kind`: "fp8", "int8" or "int4".

    In place and one matrix at a time, each of which is let go once its few bits are there.

    Args:
        device: where the model goes, by default where it is. A device on which it has room in few
            bits alone can thus be given a model from the host.

    Raises:
        ValueError: kind is unknown, the model is quantised already, or a weight is not finite, in
            which case the message names it. The model is then as it was.
    """
    linears = list(linears_of(model))
    if model.quantization is not None:
        raise ValueError(f"the model is in {model.quantization} already; it must have its weights")
    for name, linear in linears:
        if not linear.weight.isfinite().all():
            raise ValueError(f"the weight of {name} holds inf or NaN; it must be finite")
    for _, linear in linears:
        weight = linear.weight if device is None else linear.weight.to(device)
        linear.keep(quantize_weight(weight, kind))
    if device is not None:
        model.to(device)
    model.quantization = kind


def check_weights(weights: str | None) -> None:
    """Raise unless it says how a model can hold its weights; None is as they are."""
    if weights is not None and weights not in KINDS:
        raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(KINDS)}, or None")


def weight_bytes(model: Model) -> int:
    """Bytes of all the model's weights, in whatever they are stored."""
    stored = sum(weight.nbytes for weight in model.parameters())
    few_bits = (linear.quantized for _, linear in linears_of(model))
    return stored + sum(weight.n_bytes for weight in few_bits if weight is not None)
