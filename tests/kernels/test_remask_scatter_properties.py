"""remask_scatter against the reference and its definition on whatever hypothesis thinks of."""

import math

import pytest
import torch
from numeric import Guarded, assert_same_bits, forced_backend

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from dlm_kernels import BlockState, Noise, Rule, RuleTable, new_error_word, remask_scatter

MASK, EOS = 3, 2
TOKENS = st.sampled_from([MASK, MASK, MASK, 0, 1, EOS])
CANDIDATES = st.sampled_from([0, 1, EOS, MASK, -1, 2**31 - 1])
CONFIDENCES = st.sampled_from([math.nan, 0.0, -0.0, 0.25, 0.5, 0.9, 1.0, math.inf, -math.inf])
PROBABILITIES = st.sampled_from([math.nan, 0.0, 0.1, 0.25, 0.5, 1.0])
SEEDS = st.integers(-(2**63), 2**63 - 1)
POSITIONS = st.integers(0, 2**31 - 300)
FLAGS = st.booleans()


def blocks() -> st.SearchStrategy[int]:
    return st.integers(1, 9) | st.sampled_from([16, 31, 32, 33, 48])


def fill(draw, values: st.SearchStrategy, shape: tuple[int, ...], dtype: torch.dtype):
    count = math.prod(shape)
    drawn = draw(st.lists(values, min_size=count, max_size=count))
    return torch.tensor(drawn, dtype=dtype).view(shape)


def states(draw, shape: tuple[int, int]) -> BlockState:
    """In the middle of a run; few values make ties."""
    batch = shape[:1]
    tokens = fill(draw, TOKENS, shape, draw(st.sampled_from([torch.int32, torch.int64])))
    fixed = fill(draw, st.sampled_from([False, False, True]), shape, torch.bool)
    state = BlockState.start(tokens, MASK, fixed=fixed)
    state.commit_step.copy_(fill(draw, st.integers(-1, 3), shape, torch.int32))
    state.step.copy_(fill(draw, st.integers(0, 5), batch, torch.int32))
    state.edit_step.copy_(fill(draw, st.integers(0, 3), batch, torch.int32))
    state.done.copy_(fill(draw, st.sampled_from([False, False, True]), batch, torch.bool))
    return state


@st.composite
def any_rule(draw) -> Rule:
    """Every field and every pair that is allowed."""

    def maybe(values: list):
        return draw(st.sampled_from([None, *values]))

    confidence = draw(st.sampled_from(["probability", "margin", "entropy", "random"]))
    drawn, budget = confidence == "random", draw(FLAGS)
    renoise = draw(st.sampled_from([False, False, True]))
    revise = renoise and budget and draw(FLAGS)
    threshold = None if drawn else maybe([0.25, 0.5, math.inf, -math.inf])
    edit_threshold = None if drawn or revise else maybe([0.0, 0.25, -1.0])
    return Rule(
        confidence=confidence,
        threshold=threshold,
        strict=threshold is not None and draw(FLAGS),
        # Also fewer steps than were taken: what is left is then committed at once.
        steps=draw(st.integers(1, 7)) if budget else None,
        top_k=1 if budget else draw(st.integers(1, 4) | st.just(256)),
        factor=maybe([0.5, 1.0, 3.0]) if confidence == "probability" else None,
        entropy_bound=maybe([0.25, 0.7, 2.0]) if confidence == "entropy" else None,
        edit_threshold=edit_threshold,
        edit_steps=0 if edit_threshold is None else draw(st.integers(0, 3)),
        remask_below=None if renoise else maybe([0.25, 0.6]),
        renoise=renoise,
        revise=revise,
    )


@st.composite
def problems(draw):
    """(state, candidate, confidence, token probability, noise, a rule for each request)."""
    shape = draw(st.integers(1, 3)), draw(blocks())
    batch = shape[:1]
    state = states(draw, shape)
    rules = [draw(any_rule()) for _ in range(shape[0])]
    confidence = fill(draw, CONFIDENCES, shape, torch.float32)
    if any(rule.confidence == "entropy" for rule in rules):
        confidence = -confidence
    return (
        state,
        fill(draw, CANDIDATES, shape, torch.int32),
        confidence,
        fill(draw, PROBABILITIES, shape, torch.float32),
        Noise(
            fill(draw, SEEDS, batch, torch.int64),
            fill(draw, POSITIONS, batch, torch.int32),
            draw(st.sampled_from([2, 5, 2**31 - 1])),
        ),
        rules,
    )


def on(device: str, tensors) -> list[Guarded]:
    return [Guarded(x.to(device)) for x in tensors]


@given(problem=problems())
def test_triton_and_torch_match_the_reference(problem, triton_device: str) -> None:
    state, candidate, confidence, probability, noise, rules = problem
    table = RuleTable.pack(rules, triton_device)
    results = {}
    for backend in ("reference", "torch", "triton"):
        inputs = (*state, candidate, confidence, probability, *noise[:2], new_error_word("cpu"))
        buffers = on(triton_device, inputs)
        *fields, c, p, standing, seed, position, error = (x.tensor for x in buffers)
        with forced_backend(backend):
            remask_scatter(
                BlockState(*fields),
                c,
                p,
                table,
                mask_id=MASK,
                eos_id=EOS,
                token_probability=standing,
                noise=Noise(seed, position, noise.vocab_size),
                error=error,
            )
        for buffer in buffers:
            buffer.check()
        results[backend] = [x.tensor for x in buffers]
    names = (*BlockState._fields, "candidate", "confidence", "probability", "seed", "position")
    for backend in ("torch", "triton"):
        for name, ours, theirs in zip(
            (*names, "error"), results[backend], results["reference"], strict=True
        ):
            assert_same_bits(ours, theirs, f"{name} on {backend} by {rules}")


@st.composite
def mask_problems(draw):
    """(state, candidate, confidence, rule) for the rules that only commit."""
    shape = draw(st.integers(1, 3)), draw(blocks())
    rule = {}
    if draw(FLAGS):
        rule["threshold"] = draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0, math.inf, -math.inf]))
    if draw(FLAGS):
        rule["steps"] = draw(st.integers(1, 9))
    else:
        rule["top_k"] = draw(st.integers(1, 5) | st.just(256))
    state = states(draw, shape)
    # What is undecided has no step that decided it, nor a confidence.
    state.commit_step.masked_fill_((state.tokens == MASK) & ~state.fixed, -1)
    candidate = fill(draw, CANDIDATES, shape, torch.int32)
    return state, candidate, fill(draw, CONFIDENCES, shape, torch.float32), rule


@given(problem=mask_problems())
def test_result_fits_the_definition(problem, triton_device: str) -> None:
    """Restates the rule from what changed, not from how one would compute it."""
    state, candidate, confidence, rule = problem
    before = BlockState(*(x.clone() for x in state))
    device_state = BlockState(*(x.to(triton_device) for x in state))
    with forced_backend("triton"):
        remask_scatter(
            device_state,
            candidate.to(triton_device),
            confidence.to(triton_device),
            Rule(**rule),
            mask_id=MASK,
            eos_id=EOS,
        )
    after = BlockState(*(x.cpu() for x in device_state))

    for b in range(len(before.done)):
        if before.done[b]:
            for name, ours, theirs in zip(BlockState._fields, after, before, strict=True):
                assert_same_bits(ours[b], theirs[b], f"state.{name} of a done request")
            continue
        tokens, was = after.tokens[b].tolist(), before.tokens[b].tolist()
        sure, free = confidence[b].tolist(), (~before.fixed[b]).tolist()
        masks = [i for i in range(len(was)) if was[i] == MASK and free[i]]
        committed = [i for i in range(len(was)) if tokens[i] != was[i]]
        usable = [i for i in masks if candidate[b, i] not in (-1, MASK) and not math.isnan(sure[i])]
        waiting = [i for i in usable if i not in committed]
        assert set(committed) <= set(usable)
        assert all(tokens[i] == candidate[b, i] for i in committed)
        # No waiting position beats a committed one, ties to the lowest.
        assert all((sure[i], -i) > (sure[j], -j) for i in committed for j in waiting)
        threshold = rule.get("threshold", math.nan)
        # 0.9 rounds to float32 like the confidences.
        passed = [i for i in usable if sure[i] >= torch.tensor(threshold).item()]
        quota = rule.get("top_k", 0)
        if "steps" in rule:
            quota = math.ceil(len(masks) / max(1, rule["steps"] - int(before.step[b])))
        assert len(committed) == max(len(passed), min(quota, len(usable)))

        assert after.step[b] == before.step[b] + 1
        left = [i for i in masks if i not in committed]
        assert after.masks_left[b] == len(left)
        for i in range(len(was)):
            step = before.step[b] if i in committed else before.commit_step[b, i]
            assert after.commit_step[b, i] == step
            certainty = confidence[b, i] if i in committed else before.commit_confidence[b, i]
            assert after.commit_confidence[b, i] == certainty
        eos = [i for i in range(len(tokens)) if tokens[i] == EOS and free[i]]
        assert after.done[b] == (not left or bool(eos) and min(eos) < min(left))
