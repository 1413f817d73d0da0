"""Ops against the reference on whatever hypothesis thinks of."""

import math

import pytest
import reference
import torch
from numeric import Guarded, assert_same_bits
from test_confidence import assert_right

from dlm_kernels import (
    BlockState,
    Noise,
    Rule,
    RuleTable,
    new_error_word,
    remask_scatter,
)
from dlm_kernels.backend import forced_backend

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

MASK, EOS = 3, 2

cheap = settings(max_examples=3 * settings().max_examples)

# --- confidence

# The ends of tiles and chunks, and one to either side.
VOCABULARIES = st.integers(1, 40) | st.sampled_from([255, 256, 257, 511, 512, 513, 1025, 1300])
VALUES = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e4, -1e4, -65504.0]),
    st.floats(-8, 8, width=16),
)


@st.composite
def rows_of_logits(draw):
    """(logits, tokens, banned): few distinct values make ties, some places hold special values."""
    vocab = draw(VOCABULARIES)
    rows = draw(st.integers(1, 3))
    levels = draw(st.sampled_from([1, 3, 50, 4000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    logits = torch.randint(0, levels, (rows, vocab), generator=generator) * (8.0 / levels) - 4.0
    places = st.tuples(st.integers(0, rows - 1), st.integers(0, vocab - 1), VALUES)
    for row, column, value in draw(st.lists(places, max_size=4)):
        logits[row, column] = value
    if draw(st.booleans()):
        # A row of which little is left.
        logits[draw(st.integers(0, rows - 1)), 1:] = -math.inf
    tokens = draw(
        st.none() | st.lists(st.sampled_from([MASK, MASK, 0]), min_size=rows, max_size=rows)
    )
    bans = st.integers(0, vocab - 1) | st.sampled_from([-1, vocab, 2**31 - 1])
    banned = draw(st.none() | st.lists(bans, max_size=16))
    return logits.to(draw(st.sampled_from([torch.float32, torch.float16]))), tokens, banned


@cheap
@given(problem=rows_of_logits())
def test_confidence_matches_the_reference(problem, triton_device: str) -> None:
    logits, tokens, banned = problem
    options = {}
    if tokens is not None:
        options = {"tokens": torch.tensor(tokens, device=triton_device), "mask_id": MASK}
    if banned is not None:
        options["banned"] = torch.tensor(banned, dtype=torch.int32, device=triton_device)
    assert_right(logits.to(triton_device), **options)


# --- remask_scatter

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
def blocks_and_rules(draw):
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


@cheap
@given(problem=blocks_and_rules())
def test_remask_scatter_matches_the_reference(problem, triton_device: str) -> None:
    state, candidate, confidence, probability, noise, rules = problem
    table = RuleTable.pack(rules, triton_device)
    results = {}
    for backend in ("reference", "torch", "triton"):
        inputs = (*state, candidate, confidence, probability, *noise[:2], new_error_word("cpu"))
        buffers = [Guarded(x.to(triton_device)) for x in inputs]
        *fields, ids, sure, standing, seed, position, error = (x.tensor for x in buffers)
        arguments = (BlockState(*fields), ids, sure, table)
        options = {"mask_id": MASK, "eos_id": EOS, "token_probability": standing, "error": error}
        options["noise"] = Noise(seed, position, noise.vocab_size)
        if backend == "reference":
            reference.remask_scatter(*arguments, **options)
        else:
            with forced_backend(backend):
                remask_scatter(*arguments, **options)
        for buffer in buffers:
            buffer.check()
        results[backend] = [x.tensor for x in buffers]
    names = (*BlockState._fields, "candidate", "confidence", "probability", "seed", "position")
    for backend in ("torch", "triton"):
        for name, ours, theirs in zip(
            (*names, "error"), results[backend], results["reference"], strict=True
        ):
            assert_same_bits(ours, theirs, f"{name} on {backend} by {rules}")
