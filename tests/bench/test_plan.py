"""What is planned: every kind, what says most first, and nothing twice."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dlm_bench.plan import (
    GRID_MODEL,
    HOST_MODEL,
    Planned,
    gpu_plan,
    host_plan,
    quick_plan,
    small_plan,
)
from dlm_bench.subjects import Source, subjects_of
from dlm_core import PRESETS, ModelConfig, random_model
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, KINDS, QUADRATIC, VERIFY, Forward

EIGHT = PRESETS["8b"]


def batches(planned: list[Planned], kind: str, context: int) -> set[int]:
    return {
        each.forward.batch
        for each in planned
        if each.stages and (each.forward.kind, each.forward.context) == (kind, context)
    }


@pytest.mark.parametrize(
    ("plan", "config", "dtype", "context"),
    [(host_plan, GRID_MODEL, "float32", 512), (gpu_plan, EIGHT, "bfloat16", 1024)],
    ids=["host", "gpu"],
)
def test_every_kind_has_its_stages_over_batches(
    plan: Callable, config: ModelConfig, dtype: str, context: int
) -> None:
    planned = plan(config, dtype)
    for kind in (DENOISE, DECODE, DRAFT, VERIFY):
        assert batches(planned, kind, context) == {1, 2, 4, 8, 16, 32, 64}
    assert len(batches(planned, QUADRATIC, context)) >= 3
    assert {each.forward.k for each in planned if each.forward.kind == QUADRATIC} in (
        {4, 8},
        {10, 16},
    )
    assert {each.forward.block for each in planned if each.forward.kind == DRAFT} == {8, 16, 32}
    assert {each.forward.weights for each in planned} >= {None, "int8", "int4"}
    # What says most comes first: one request's four kinds, before any other context.
    assert [each.forward.kind for each in planned[:4]] == [DENOISE, DECODE, DRAFT, VERIFY]
    assert all(each.forward.batch == 1 and each.stages for each in planned[:4])
    other = next(i for i, each in enumerate(planned) if each.forward.context != context)
    assert {each.forward.kind for each in planned[:other]} == set(KINDS)
    # A model in few bits is made once each, after all that runs on the first one is nearly done.
    weights = [each.forward.weights for each in planned]
    changes = sum(a != b for a, b in zip(weights, weights[1:], strict=False))
    assert changes <= len(set(weights))


def test_contexts_of_each_device() -> None:
    def whole(planned: list[Planned], kind: str) -> set[int]:
        return {each.forward.context for each in planned if each.forward.kind == kind}

    assert whole(host_plan(GRID_MODEL, "float32"), DECODE) == {128, 512, 2048, 4096}
    for kind in (DENOISE, DECODE, DRAFT, VERIFY):
        contexts = {1 << n for n in (10, 12, 14, 16, 17)}
        assert whole(gpu_plan(EIGHT, "bfloat16"), kind) == contexts
    float8 = {p.forward for p in gpu_plan(EIGHT, "bfloat16") if p.forward.float8_cache}
    assert {forward.context for forward in float8} == {16384}


@pytest.mark.parametrize("config", [EIGHT, PRESETS["tiny"], GRID_MODEL], ids=["8b", "tiny", "30M"])
@pytest.mark.parametrize("plan", [gpu_plan, host_plan, small_plan, quick_plan])
@pytest.mark.parametrize("block_size", [16, 32])
def test_nothing_is_planned_twice_or_beyond_a_models_positions(config, plan, block_size) -> None:
    config = replace(config, block_size=block_size)
    planned = plan(config, "float32")
    forwards = [each.forward for each in planned]
    assert len(set(forwards)) == len(forwards)
    for forward in forwards:
        assert forward.context + forward.block <= config.max_position_embeddings


def test_a_source_keeps_its_last_model_alone() -> None:
    made = []

    def make(weights: str | None) -> object:
        made.append(weights)
        return random_model("tiny", weights=weights)

    source = Source("tiny", PRESETS["tiny"], make)
    assert source.model() is source.model()
    assert source.model("int8").quantization == "int8"
    source.model("int8")
    source.model()
    assert made == [None, "int8", None]


def test_the_hosts_models_are_named_by_their_parameters() -> None:
    subjects = subjects_of(None, torch.device("cpu"), quick=False)
    names = {source.name: source.config for each in subjects for source in each.candidates}
    assert list(names) == ["tiny-a", "188M, random weights", "30M, random weights"]
    for config, millions in ((HOST_MODEL, 188), (GRID_MODEL, 30)):
        name = f"{millions}M, random weights"
        assert names[name] == config
        hidden, layers = config.hidden_size, config.num_hidden_layers
        sizes = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        projections = hidden * (2 * sizes[0] + 2 * sizes[1]) * sizes[2]
        layer = projections + 3 * hidden * config.intermediate_size
        total = 2 * config.vocab_size * hidden + layers * layer
        assert int(total / 1e6) == millions


def test_rows_of_what_is_planned() -> None:
    denoise = Forward(DENOISE, 1, 32, 10, "float32")
    assert Planned(denoise).rows(EIGHT) == 1
    assert Planned(denoise, stages=True).rows(EIGHT) == 6
    assert Planned(replace(denoise, kind=VERIFY), stages=True).rows(EIGHT) == 5
