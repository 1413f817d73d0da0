"""confidence against the reference on whatever hypothesis thinks of."""

import math

import pytest
import torch
from numeric import assert_close_to_reference, forced_backend

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from dlm_kernels import Confidence, confidence, new_error_word, reference

MASK = 5
# The ends of tiles and chunks, and one to either side.
VOCABULARIES = st.one_of(
    st.integers(1, 40), st.sampled_from([1023, 2048, 2049, 4096, 4097, 16384, 16385, 18001])
)
VALUES = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e4, -1e4, -65504.0]),
    st.floats(-8, 8, width=16),
)


@st.composite
def problems(draw):
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
    dtype = draw(st.sampled_from([torch.float32, torch.float16]))
    return logits.to(dtype), tokens, banned


@given(problem=problems())
def test_triton_and_torch_match_the_reference(problem, triton_device: str) -> None:
    logits, tokens, banned = problem
    logits = logits.to(triton_device)
    tokens = None if tokens is None else torch.tensor(tokens, device=triton_device)
    if banned is not None:
        banned = torch.tensor(banned, dtype=torch.int32, device=triton_device)
    mask_id = None if tokens is None else MASK
    exact_error = new_error_word(triton_device)
    exact = reference.confidence(logits.double(), tokens, mask_id, banned, True, True, exact_error)
    results = {}
    for backend in ("torch", "triton"):
        error = new_error_word(triton_device)
        with forced_backend(backend):
            results[backend] = confidence(
                logits,
                tokens=tokens,
                mask_id=mask_id,
                banned=banned,
                entropy=True,
                margin=True,
                error=error,
            )
        assert error.item() == exact_error.item(), backend
        assert results[backend].token.tolist() == exact[0].tolist(), backend
    for name, ours, torchs, truth in zip(
        Confidence._fields[1:], results["triton"][1:], results["torch"][1:], exact[1:], strict=True
    ):
        finite = truth[truth.isfinite()].abs()
        largest = max(1.0, float(finite.max()) if len(finite) else 0.0)
        assert_close_to_reference(ours, torchs, truth, floor=5e-7 * largest, what=name)
