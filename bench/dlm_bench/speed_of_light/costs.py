"""Compulsory costs of what the rows measure: a step's floor is the sum over these stages."""

from dlm_core import ModelConfig
from dlm_kernels import Cost, block_attention_cost
from dlm_kernels.quantized_weight import GROUP
from dlm_roofline.step_cost import (
    ATTENTION,
    PROJECTIONS,
    REMASK,
    linear_shapes,
    step_cost,
)


def forward_costs(
    config: ModelConfig,
    batch: int,
    block: int,
    context: int,
    *,
    itemsize: int,
    causal: bool = False,
    weights: str | None = None,
) -> dict[str, Cost]:
    """The stages of one forward.

    weights: "fp8", "int8" or "int4": of the layers' projections; scales are float32.
    """
    stages = step_cost(config, batch, block, context, itemsize=itemsize, causal=causal)
    if weights is not None:
        fewer = sum(
            quantized_bytes(n_in, n_out, weights) - itemsize * n_in * n_out
            for n_in, n_out in linear_shapes(config)
        )
        stages[PROJECTIONS] += Cost(0, config.num_hidden_layers * fewer)
    return stages


def linear_cycle_costs(
    config: ModelConfig, batch: int, context: int, *, itemsize: int
) -> dict[str, Cost]:
    """Draft and verify: a bidirectional forward of a block and a causal one."""
    shape = (config, batch, config.block_size, context)
    draft = forward_costs(*shape, itemsize=itemsize)
    del draft[REMASK]
    verify = forward_costs(*shape, itemsize=itemsize, causal=True)
    return {f"draft: {name}": cost for name, cost in draft.items()} | {
        f"verify: {name}": cost for name, cost in verify.items()
    }


def quadratic_cycle_costs(
    config: ModelConfig, batch: int, k: int, context: int, *, itemsize: int
) -> dict[str, Cost]:
    """One forward of k groups of k + 1 rows, the LM head over every row in one pass."""
    rows = k * (k + 1)
    stages = forward_costs(config, batch, rows, context, itemsize=itemsize, causal=True)
    stages[ATTENTION] = config.num_hidden_layers * block_attention_cost(
        batch,
        rows,
        context,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        itemsize=itemsize,
        draft_groups=(k, k + 1),
    )
    return stages


def quantized_bytes(n_in: int, n_out: int, kind: str) -> int:
    """Bytes of a weight [n_out, n_in] and its scales."""
    if kind == "int4":
        groups = -(-n_in // GROUP)
        return n_out * groups * (GROUP // 2 + 4)
    return n_out * (n_in + 4)
