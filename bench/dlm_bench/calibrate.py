"""What our ops reach on a GPU at shapes of no model: predictions of whole forwards rest on it.

An op is called where it streams and, if it multiplies, where it multiplies most. On a host forwards
are predicted by the ceilings alone.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dlm_core import PRESETS
from dlm_kernels import (
    Cost,
    PartialSums,
    gated_silu,
    gated_silu_cost,
    linear_cost,
    linear_partials,
    quantize_weight,
    residual_norm,
    residual_norm_cost,
    rope_kv_write,
    rope_kv_write_cost,
)
from dlm_roofline.forward import WEIGHTS
from dlm_roofline.op_rates import OpRate, op_rate

from .cases import Case, attention_case, lm_head_case, remask_case
from .timing import Call, Timer, nothing

Made = tuple[Cost, Call, Call]  # what a call costs, the call, what puts back what it changes

# None is a size of a model that the bench times: what these reach has to predict others.
FEATURES, STREAMING_ROWS, MULTIPLYING_ROWS = 6144, 24, 4096
CONFIG = replace(
    PRESETS["8b"], num_attention_heads=24, num_key_value_heads=6, vocab_size=98304, block_size=96
)
BATCH, CONTEXT = 16, 6144


def measured_rate(timer: Timer, calls: list[Callable[[], Made]], launch: float) -> OpRate:
    """launch: seconds of one that does nothing."""
    found = []
    for cost, run, reset in (make() for make in calls):
        found.append((cost, timer.time(run, reset=reset).median))
    return op_rate(found, launch)


def calls_of_ops(device: torch.device, dtype: torch.dtype) -> dict[str, list[Callable[[], Made]]]:
    """By the names of ops in `step_launches` the calls that each is measured by, yet to be made."""
    size, rows = dtype.itemsize, MULTIPLYING_ROWS

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def parts(*shape: int) -> PartialSums:
        return PartialSums(torch.randn(1, *shape, device=device), dtype)

    def product(weights: str | None, rows: int) -> Made:
        x, weight = randn(rows, FEATURES), randn(FEATURES, FEATURES)
        n_bytes = weight.nbytes
        if weights:
            weight = quantize_weight(weight, weights)
            n_bytes = weight.n_bytes
        cost = linear_cost(rows, FEATURES, FEATURES, itemsize=size, weight_bytes=n_bytes)
        return cost, lambda: linear_partials(x, weight), nothing

    def norm() -> Made:
        x, update, weight = randn(rows, FEATURES), parts(rows, FEATURES), randn(FEATURES)
        cost = residual_norm_cost(rows, FEATURES, itemsize=size)
        return cost, lambda: residual_norm(x, update, weight, 1e-5), nothing

    def rotation() -> Made:
        heads = CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim
        qkv = parts(1, rows, (heads[0] + 2 * heads[1]) * heads[2])
        cos, sin = torch.rand(2, 1, rows, heads[2] // 2, device=device)
        scale = torch.ones(1, rows, device=device)
        cost = rope_kv_write_cost(1, rows, *heads, itemsize=size)
        return cost, lambda: rope_kv_write(qkv, cos, sin, scale, kv_heads=heads[1]), nothing

    def silu() -> Made:
        both = parts(rows, 2 * FEATURES)
        cost = gated_silu_cost(rows, FEATURES, itemsize=size)
        return cost, lambda: gated_silu(both), nothing

    def of_case(case: Case) -> Made:
        work = case.build(device)
        return case.cost, work.run, work.reset

    streaming, multiplying = replace(CONFIG, block_size=2), CONFIG
    heads = [attention_case(BATCH, CONTEXT, dtype, config=x) for x in (streaming, multiplying)]
    both_rows = (STREAMING_ROWS, rows // 2)
    head = [lm_head_case(each, FEATURES, dtype, config=CONFIG) for each in both_rows]
    linears = {
        f"linear {weights}" if weights else "linear": [
            partial(product, weights, each) for each in (STREAMING_ROWS, rows)
        ]
        for weights in (None, *WEIGHTS)
    }
    return linears | {
        "block_attention": [partial(of_case, each) for each in heads],
        "lm_head_confidence": [partial(of_case, each) for each in head],
        "residual_norm": [norm],
        "rope_kv_write": [rotation],
        "gated_silu": [silu],
        "remask_scatter": [partial(of_case, remask_case(8 * BATCH, dtype, config=CONFIG))],
    }
