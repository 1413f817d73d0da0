"""What a step asks of the device: how many ops a layer takes, and that none comes in between."""

import dataclasses
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dlm_core import PRESETS, KVCache, random_model

# They change how memory is seen, or fetch no memory at all.
VIEWS = {"view", "_unsafe_view", "select", "slice", "unsqueeze", "detach", "as_strided", "alias"}


class OpCounter(TorchDispatchMode):
    """Counts the ops that would each launch something; an op's own insides are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.ops[name] += 1
        return func(*args, **(kwargs or {}))


def ops_of_a_forward(layers: int, *, causal: bool) -> Counter[str]:
    config = dataclasses.replace(PRESETS["tiny"], num_hidden_layers=layers)
    model = random_model(config)
    cache = KVCache(config, 2, 64, device="cpu", dtype=model.dtype)
    tokens = torch.zeros(2, 8, dtype=torch.int32)
    with OpCounter() as counter:
        model(tokens, cache, causal=causal)
    return counter.ops


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_a_layer_takes_nine_ops_of_ours_and_none_of_torch(causal: bool) -> None:
    """Each op is one launch, attention behind a long context two."""
    added = ops_of_a_forward(3, causal=causal) - ops_of_a_forward(2, causal=causal)
    assert added == {
        "linear_partials": 4,  # q, k and v; o; gate and up; down
        "rope_kv_write": 1,
        "block_attention": 1,
        "residual_norm": 2,
        "gated_silu": 1,
    }
