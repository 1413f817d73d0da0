"""Forwards of every kind: they do what decoding does, and their stages are what they consist of."""

import weakref
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dlm_bench.stages import stages_of
from dlm_bench.steps import StepBench
from dlm_core import Model, random_model
from dlm_roofline.forward import (
    DECODE,
    DENOISE,
    DRAFT,
    KINDS,
    LINEAR,
    QUADRATIC,
    VERIFY,
    Forward,
)  # fmt: skip
from dlm_roofline.step_cost import step_cost

BLOCKS = {DECODE: 1, DENOISE: 8, DRAFT: 8, VERIFY: 8, QUADRATIC: 20, LINEAR: 8}
STAGED = [kind for kind in KINDS if kind != LINEAR]


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model("tiny", seed=3)


def forward_of(kind: str, batch: int = 2, context: int = 20, **options) -> Forward:
    return Forward(kind, batch, BLOCKS[kind], context, "float32", **options)


class OpsOfOurs(TorchDispatchMode):
    """Counts the calls of dlm_kernels by op and shapes, and looks for denormal results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter = Counter()
        self.denormals = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "dlm_kernels":
            shapes = tuple(tuple(x.shape) for x in args if isinstance(x, torch.Tensor))
            self.calls[func._schema.name, shapes] += 1
            outs = out if isinstance(out, tuple) else (out,)
            for x in (x for x in outs if torch.is_tensor(x) and x.is_floating_point()):
                self.denormals += int(((x != 0) & (x.abs() < torch.finfo(x.dtype).tiny)).sum())
        return out


def seen(*runs: Callable[[], object]) -> OpsOfOurs:
    with OpsOfOurs() as ops:
        for run in runs:
            run()
    return ops


@pytest.mark.parametrize("float8_cache", [False, True], ids=["cache", "float8"])
@pytest.mark.parametrize("kind", STAGED)
def test_the_stages_are_the_calls_of_the_whole(model: Model, kind: str, float8_cache: bool) -> None:
    forward = forward_of(kind, float8_cache=float8_cache)
    bench = StepBench(model, forward)
    whole = seen(bench.step)
    bench.reset()
    stages = stages_of(bench)
    parts = seen(*(run for run, _ in stages.values()))
    bench.check()
    assert list(stages) == list(step_cost(model.config, forward))
    assert whole.calls.total() > 9 * model.config.num_hidden_layers
    assert parts.calls == whole.calls
    assert whole.denormals == parts.denormals == 0


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_stages_of_weights_in_few_bits(kind: str) -> None:
    model = random_model("tiny", weights=kind)
    bench = StepBench(model, forward_of(DENOISE, weights=kind))
    assert not bench.has_peer
    stages = stages_of(bench)
    assert all(peer is None for _, peer in stages.values())
    assert seen(bench.step).calls == seen(*(run for run, _ in stages.values())).calls


def test_draft_and_verify_are_a_linear_cycle(model: Model) -> None:
    draft, verify, both = (StepBench(model, forward_of(x)) for x in (DRAFT, VERIFY, LINEAR))
    draft.cache = both.cache = verify.cache  # one context, with room to verify
    both.tokens[:, 0] = draft.tokens[:, 0]
    verdicts = []
    whole = seen(lambda: verdicts.append(both.step()))
    assert seen(draft.step, verify.step).calls == whole.calls

    # Of the drafts of the same seeds the verdict is the same.
    verify.tokens[:, 1:] = draft.step()
    verify.tokens[:, 0] = draft.tokens[:, 0]
    assert torch.equal(verify.step(), verdicts[0])


@pytest.mark.parametrize(
    ("kind", "written"), [(DECODE, 1), (VERIFY, 8), (QUADRATIC, 4), (LINEAR, 8)]
)
def test_causal_forwards_write_after_the_context(model: Model, kind: str, written: int) -> None:
    bench = StepBench(model, forward_of(kind))
    before = [keys.clone() for keys in bench.cache.keys]
    bench.step()
    for keys, old in zip(bench.cache.keys, before, strict=True):
        changed = (keys != old).any(-1).any(-1)
        assert changed.tolist() == [[False] * 20 + [True] * written] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_forward_starts_over(model: Model, kind: str) -> None:
    bench = StepBench(model, forward_of(kind))
    first = bench.step().clone()
    bench.reset()
    assert bench.cache.lengths.tolist() == [20, 20] and bench.cache.max_length == 20
    assert torch.equal(bench.step(), first)
    bench.check()


@pytest.mark.parametrize(("batch", "block"), [(1, 32), (3, 5)])
def test_the_plain_step_commits_what_ours_commits(model: Model, batch: int, block: int) -> None:
    bench = StepBench(model, Forward(DENOISE, batch, block, 50, "float32"))
    ours = bench.step().clone()
    assert (ours != model.config.mask_token_id).sum() > batch  # the first token and one more
    bench.reset()
    assert torch.equal(ours, bench.peer())
    bench.check()


def test_the_plain_decoding_step_chooses_what_ours_chooses(model: Model) -> None:
    bench = StepBench(model, forward_of(DECODE, batch=5))
    ours = bench.step().clone()
    bench.reset()
    assert torch.equal(ours, bench.peer())


@pytest.mark.parametrize("kind", STAGED)
def test_plain_peers_are_there_where_nothing_is_hidden(model: Model, kind: str) -> None:
    stages = stages_of(StepBench(model, forward_of(kind)))
    for run, peer in stages.values():
        assert (peer is not None) == (kind in (DECODE, DENOISE))
        if peer:
            run(), peer()


def test_an_empty_context(model: Model) -> None:
    for kind in KINDS:
        bench = StepBench(model, forward_of(kind, context=0))
        bench.step()
        bench.check()


def test_what_a_forward_took_is_given_back_at_once(model: Model) -> None:
    """A cache can be most of a device's memory: it must not wait for the garbage collector."""
    bench = StepBench(model, forward_of(DENOISE))
    stages = stages_of(bench)
    bench.step()
    gone = weakref.ref(bench.cache)
    del bench, stages
    assert gone() is None


@pytest.mark.parametrize(
    "forward",
    [
        Forward(DECODE, 1, 1, 8, "bfloat16"),
        Forward(DECODE, 1, 1, 8, "float32", weights="int8"),
    ],
    ids=["dtype", "weights"],
)
def test_a_forward_of_another_model_is_refused(model: Model, forward: Forward) -> None:
    with pytest.raises(ValueError, match="the model has float32, None"):
        StepBench(model, forward)


def test_a_context_beyond_the_models_positions_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="capacity is 4097; .* 4096"):
        StepBench(model, Forward(DECODE, 1, 1, 4096, "float32"))
