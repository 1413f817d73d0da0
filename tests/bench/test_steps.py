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
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, KINDS, LINEAR, QUADRATIC, VERIFY, Forward
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


@pytest.mark.parametrize("few_bits", [{}, {"float8_cache": True}, {"weights": "int8"}], ids=str)
@pytest.mark.parametrize("kind", STAGED)
def test_the_stages_are_the_calls_of_the_whole(model: Model, kind: str, few_bits: dict) -> None:
    forward = forward_of(kind, **few_bits)
    model = random_model("tiny", weights="int8") if forward.weights else model
    bench = StepBench(model, forward)
    whole = seen(bench.step)
    bench.reset()
    stages = stages_of(bench)
    parts = seen(*(run for run, _ in stages.values()))
    bench.check()
    assert list(stages) == list(step_cost(model.config, forward))
    has_peer = kind in (DECODE, DENOISE) and not few_bits  # where nothing is hidden or quantised
    assert [peer is not None for _, peer in stages.values()] == [has_peer] * len(stages)
    assert whole.calls.total() > 9 * model.config.num_hidden_layers
    assert parts.calls == whole.calls
    assert whole.denormals == parts.denormals == 0


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


@pytest.mark.parametrize(("kind", "batch", "block"), [(DENOISE, 3, 5), (DECODE, 5, 1)])
def test_plain_torch_chooses_what_ours_chooses(
    model: Model, kind: str, batch: int, block: int
) -> None:
    bench = StepBench(model, Forward(kind, batch, block, 50, "float32"))
    ours = bench.step().clone()
    if kind == DENOISE:  # the first token of each block, and one more
        assert (ours != model.config.mask_token_id).sum() > batch
    bench.reset()
    assert torch.equal(ours, bench.peer())
    for _, peer in stages_of(bench).values():
        peer()


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
