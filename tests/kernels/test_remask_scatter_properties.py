"""remask_scatter against the reference and its definition on whatever hypothesis thinks of."""

import math

import pytest
import torch
from numeric import Guarded, assert_same_bits, forced_backend

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from dlm_kernels import BlockState, new_error_word, remask_scatter

MASK, EOS = 3, 2
TOKENS = st.sampled_from([MASK, MASK, MASK, 0, 1, EOS])
CANDIDATES = st.sampled_from([0, 1, EOS, MASK, -1, 2**31 - 1])
CONFIDENCES = st.sampled_from([math.nan, 0.0, -0.0, 0.25, 0.5, 0.9, 1.0, math.inf, -math.inf])


@st.composite
def problems(draw):
    """(state, candidate, confidence, rule) in the middle of a run; few values make ties."""
    batch = draw(st.integers(1, 3))
    block = draw(st.integers(1, 9) | st.sampled_from([16, 31, 32, 33, 48]))
    size = batch * block

    def fill(values, count, dtype):
        return torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=dtype)

    token_dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    tokens = fill(TOKENS, size, token_dtype).view(batch, block)
    state = BlockState.start(tokens, MASK)
    state.step.copy_(fill(st.integers(0, 5), batch, torch.int32))
    state.done.copy_(fill(st.sampled_from([False, False, True]), batch, torch.bool))
    candidate = fill(CANDIDATES, size, torch.int32).view(batch, block)
    confidence = fill(CONFIDENCES, size, torch.float32).view(batch, block)
    rule = {}
    if draw(st.booleans()):
        rule["threshold"] = draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0, math.inf, -math.inf]))
    if draw(st.booleans()):
        # Also fewer steps than were taken: what is left is then committed at once.
        rule["steps"] = draw(st.integers(1, 9))
    else:
        rule["top_k"] = draw(st.integers(1, 5) | st.just(256))
    return state, candidate, confidence, rule


def on(device: str, tensors) -> list[Guarded]:
    return [Guarded(x.to(device)) for x in tensors]


@given(problem=problems())
def test_triton_and_torch_match_the_reference(problem, triton_device: str) -> None:
    state, candidate, confidence, rule = problem
    results = {}
    for backend in ("reference", "torch", "triton"):
        buffers = on(triton_device, (*state, candidate, confidence, new_error_word("cpu")))
        *fields, c, p, error = (x.tensor for x in buffers)
        with forced_backend(backend):
            remask_scatter(BlockState(*fields), c, p, mask_id=MASK, eos_id=EOS, error=error, **rule)
        for buffer in buffers:
            buffer.check()
        results[backend] = (*fields, c, p, error)
    names = (*BlockState._fields, "candidate", "confidence", "error")
    for backend in ("torch", "triton"):
        for name, ours, theirs in zip(names, results[backend], results["reference"], strict=True):
            assert_same_bits(ours, theirs, f"{name} on {backend}")


@given(problem=problems())
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
            mask_id=MASK,
            eos_id=EOS,
            **rule,
        )
    after = BlockState(*(x.cpu() for x in device_state))

    for b in range(len(before.done)):
        if before.done[b]:
            for name, ours, theirs in zip(BlockState._fields, after, before, strict=True):
                assert_same_bits(ours[b], theirs[b], f"state.{name} of a done request")
            continue
        tokens, was = after.tokens[b].tolist(), before.tokens[b].tolist()
        sure = confidence[b].tolist()
        committed = [i for i in range(len(was)) if tokens[i] != was[i]]
        usable = [
            i
            for i in range(len(was))
            if was[i] == MASK and candidate[b, i] not in (-1, MASK) and not math.isnan(sure[i])
        ]
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
            quota = math.ceil(was.count(MASK) / max(1, rule["steps"] - int(before.step[b])))
        assert len(committed) == max(len(passed), min(quota, len(usable)))

        assert after.step[b] == before.step[b] + 1
        assert after.masks_left[b] == tokens.count(MASK)
        for i in range(len(was)):
            step = before.step[b] if i in committed else before.commit_step[b, i]
            assert after.commit_step[b, i] == step
            certainty = confidence[b, i] if i in committed else before.commit_confidence[b, i]
            assert after.commit_confidence[b, i] == certainty
        until_eos = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        assert after.done[b] == (MASK not in until_eos)
