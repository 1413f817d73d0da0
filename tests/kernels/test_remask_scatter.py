"""remask_scatter: rules, EOS, budgets and whole runs, exact on all backends."""

import math

import pytest
import torch
from numeric import Guarded, assert_same_bits, forced_backend, unchanged
from torch import Tensor

from dlm_kernels import BlockState, Rule, new_error_word, remask_scatter
from dlm_kernels.error_word import NO_CANDIDATE

MASK, EOS = 100, 11
M = MASK
BLOCKS = [1, 2, 5, 31, 32, 33, 100, 256]


def state_of(tokens: list[list[int]], device: str, dtype: torch.dtype = torch.int32) -> BlockState:
    return BlockState.start(torch.tensor(tokens, dtype=dtype, device=device), MASK)


def step(state: BlockState, candidate: list, confidence: list, **rule) -> Tensor:
    """One step of the public function on lists; returns the error word."""
    device = state.tokens.device
    error = new_error_word(device)
    remask_scatter(
        state,
        torch.tensor(candidate, dtype=torch.int32, device=device).view(state.tokens.shape),
        torch.tensor(confidence, dtype=torch.float32, device=device).view(state.tokens.shape),
        Rule(**rule),
        mask_id=MASK,
        eos_id=EOS,
        error=error,
    )
    return error


def random_candidates(
    batch: int, block: int, device: str, seed: int, levels: int | None = None
) -> tuple[Tensor, Tensor]:
    """Ids other than MASK and EOS, and confidences: distinct, or on `levels` values with ties."""
    generator = torch.Generator().manual_seed(seed)
    candidate = torch.randint(12, 90, (batch, block), generator=generator, dtype=torch.int32)
    if levels is None:
        rank = torch.rand(batch, block, generator=generator).argsort(1).float()
        confidence = (rank + 0.5) / block
    else:
        confidence = torch.randint(0, levels + 1, (batch, block), generator=generator) / levels
    return candidate.to(device), confidence.to(device)


# --- the rule, on cases one can read


@pytest.mark.parametrize("token_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_every_field_after_one_step(token_dtype: torch.dtype, backend: str, op_device: str) -> None:
    state = state_of([[7, M, M, M, M]], op_device, token_dtype)
    error = step(state, [1, 2, 3, 4, 5], [1.0, 0.5, 0.9, 0.25, 0.95], threshold=0.9)
    assert state.tokens.tolist() == [[7, M, 3, M, 5]]
    assert state.commit_step.tolist() == [[-1, -1, 0, -1, 0]]
    assert state.commit_confidence[0].tolist() == pytest.approx([0, 0, 0.9, 0, 0.95])
    assert state.fixed.tolist() == [[True, False, False, False, False]]
    assert state.masks_left.tolist() == [2]
    assert state.step.tolist() == [1]
    assert state.edit_step.tolist() == [0]
    assert state.done.tolist() == [False]
    assert not error.item()
    step(state, [1, 2, 3, 4, 5], [1.0, 0.5, 0.9, 0.25, 0.95], top_k=2)
    assert state.tokens.tolist() == [[7, 2, 3, 4, 5]]
    assert state.commit_step.tolist() == [[-1, 1, 0, 1, 0]]
    assert state.masks_left.tolist() == [0]
    assert state.step.tolist() == [2]
    assert state.done.tolist() == [True]


@pytest.mark.parametrize(
    ("confidence", "rule", "committed"),
    [
        pytest.param([0.3, 0.9, 0.5, 0.2], {}, [1], id="default-is-the-best-one"),
        pytest.param([0.3, 0.9, 0.5, 0.2], {"top_k": 2}, [1, 2], id="top-2"),
        pytest.param([0.3, 0.9, 0.5, 0.2], {"top_k": 9}, [0, 1, 2, 3], id="top-k-past-the-block"),
        pytest.param([0.3, 0.9, 0.5, 0.2], {"threshold": 0.4}, [1, 2], id="threshold"),
        pytest.param([0.3, 0.9, 0.5, 0.2], {"threshold": 0.95}, [1], id="none-passes-the-best-one"),
        pytest.param([0.3, 0.9, 0.5, 0.2], {"threshold": 0.5}, [1, 2], id="threshold-is-reached"),
        pytest.param([0.1, 0.9, 0.1, 0.1], {"threshold": 0.9}, [1], id="float32-of-0.9-is-reached"),
        pytest.param(
            [0.3, 0.9, 0.5, 0.2], {"threshold": 0.8, "top_k": 3}, [0, 1, 2], id="or-else-top-3"
        ),
        pytest.param(
            [0.3, 0.9, 0.5, 0.2], {"threshold": 0.25, "top_k": 2}, [0, 1, 2], id="all-that-pass"
        ),
        pytest.param([0.5, 0.5, 0.5, 0.5], {"top_k": 2}, [0, 1], id="ties-to-the-lowest-position"),
        pytest.param([0.2, 0.5, 0.9, 0.5], {"top_k": 2}, [1, 2], id="tie-for-the-last-rank"),
        pytest.param([0.0, 0.0, 0.0, 0.0], {}, [0], id="all-zero"),
        pytest.param([-0.0, 0.0, 0.0, -0.0], {}, [0], id="zeros-of-either-sign-tie"),
        pytest.param([-3.0, -1.0, -2.0, -9.0], {}, [1], id="negative-confidence"),
        pytest.param([0.3, math.inf, 0.5, -math.inf], {"top_k": 3}, [0, 1, 2], id="infinities"),
        pytest.param([-math.inf] * 4, {"top_k": 2}, [0, 1], id="all-minus-inf"),
        pytest.param([math.nan, 0.1, math.nan, 0.2], {"top_k": 3}, [1, 3], id="nan-never"),
        pytest.param([math.nan, 0.1, 0.3, 0.2], {"threshold": 0.0}, [1, 2, 3], id="nan-fails-0"),
        pytest.param([0.3, 0.9, 0.5, 0.2], {"threshold": -math.inf}, [0, 1, 2, 3], id="all-pass"),
        pytest.param([0.3, 0.9, 0.5, 0.2], {"threshold": math.inf}, [1], id="none-can-pass"),
        pytest.param([0.3, 0.9, 0.5, 0.2], {"steps": 3}, [1, 2], id="first-of-3-steps"),
        pytest.param([0.3, 0.9, 0.5, 0.2], {"steps": 1}, [0, 1, 2, 3], id="one-step"),
        pytest.param(
            [0.3, 0.9, 0.5, 0.2], {"steps": 4, "threshold": 0.5}, [1, 2], id="budget-and-threshold"
        ),
    ],
)
def test_which_positions_are_committed(
    confidence: list[float], rule: dict, committed: list[int], backend: str, op_device: str
) -> None:
    state = state_of([[M] * 4], op_device)
    error = step(state, [1, 2, 3, 4], confidence, **rule)
    assert state.commit_step[0].eq(0).nonzero().flatten().tolist() == committed
    expected = [i + 1 if i in committed else M for i in range(4)]
    assert state.tokens.tolist() == [expected]
    assert not error.item()


@pytest.mark.parametrize("rule", [{}, {"threshold": 0.1}, {"top_k": 4}, {"steps": 1}])
def test_a_position_without_a_candidate_stays_masked(
    rule: dict, backend: str, op_device: str
) -> None:
    state = state_of([[M, M, M, 7]], op_device)
    error = step(state, [-1, MASK, 3, 9], [0.99, 0.98, 0.2, 1.0], **rule)
    assert state.tokens.tolist() == [[M, M, 3, 7]]
    assert state.masks_left.tolist() == [2]
    assert not error.item()


@pytest.mark.parametrize(
    ("candidate", "confidence"),
    [
        pytest.param([-1, -1, -1], [0.9, 0.9, 0.9], id="negative"),
        pytest.param([MASK, MASK, MASK], [0.9, 0.9, 0.9], id="mask-id"),
        pytest.param([1, 2, 3], [math.nan] * 3, id="nan"),
        pytest.param([-(2**31), 5, MASK], [0.9, math.nan, 0.9], id="each-another-way"),
    ],
)
def test_no_usable_candidate_sets_the_error_word(
    candidate: list[int], confidence: list[float], backend: str, op_device: str
) -> None:
    stuck_and_fine = state_of([[M, M, M], [M, 8, 8]], op_device)
    error = step(
        stuck_and_fine, [candidate, [4, 4, 4]], [confidence, [0.5, 0.5, 0.5]], threshold=0.0
    )
    assert error.item() == NO_CANDIDATE
    assert stuck_and_fine.tokens.tolist() == [[M, M, M], [4, 8, 8]]
    assert stuck_and_fine.masks_left.tolist() == [3, 0]
    assert stuck_and_fine.done.tolist() == [False, True]
    # A request that is done has no need of candidates.
    stuck_and_fine.done.fill_(True)
    assert not step(stuck_and_fine, [candidate, candidate], [confidence, confidence]).item()


# --- EOS


@pytest.mark.parametrize(
    ("tokens", "candidate", "after", "done"),
    [
        pytest.param(
            [M, M, M, M], [EOS, 2, 3, 4], [EOS, M, M, M], True, id="eos-first-freezes-the-rest"
        ),
        pytest.param([1, M, M, M], [5, EOS, 3, 4], [1, EOS, M, M], True, id="no-mask-before-it"),
        pytest.param([M, 1, M, M], [0, 2, EOS, 4], [0, 1, M, M], False, id="another-first"),
        pytest.param([1, 2, 3, M], [9, 9, 9, EOS], [1, 2, 3, EOS], True, id="eos-last"),
        pytest.param([M, EOS, M, M], [1, 2, 3, 4], [1, EOS, M, M], True, id="last-mask-before-it"),
        pytest.param([M, M, EOS, M], [1, 2, 3, 4], [1, M, EOS, M], False, id="mask-before-it"),
        pytest.param([EOS, M, M, M], [1, 2, 3, 4], [EOS, 2, M, M], True, id="eos-already-first"),
        pytest.param([M, 1, M, EOS], [5, 2, 3, 4], [5, 1, M, EOS], False, id="mask-between"),
    ],
)
def test_done_with_the_first_eos_that_has_no_mask_before_it(
    tokens: list[int],
    candidate: list[int],
    after: list[int],
    done: bool,
    backend: str,
    op_device: str,
) -> None:
    # In the middle of a run: none of the tokens is given.
    tokens = torch.tensor([tokens], dtype=torch.int32, device=op_device)
    state = BlockState.start(tokens, MASK, fixed=torch.zeros_like(tokens, dtype=torch.bool))
    # The first masked position is the surest.
    step(state, candidate, [0.9, 0.8, 0.7, 0.6])
    assert state.tokens.tolist() == [after]
    assert state.done.tolist() == [done]
    assert state.masks_left.tolist() == [after.count(M)]
    if done:
        for _ in range(2):
            frozen = BlockState(*(x.clone() for x in state))
            assert not step(state, [1, 2, 3, 4], [1.0] * 4, threshold=0.0).item()
            for name, ours, theirs in zip(BlockState._fields, state, frozen, strict=True):
                assert_same_bits(ours, theirs, f"state.{name} of a done request")


def test_an_eos_that_is_given_ends_nothing(backend: str, op_device: str) -> None:
    state = state_of([[7, EOS, M, M]], op_device)
    step(state, [1, 2, 3, 4], [0.1, 0.1, 0.9, 0.2])
    assert state.tokens.tolist() == [[7, EOS, 3, M]]
    assert state.done.tolist() == [False]
    step(state, [1, 2, 3, EOS], [0.1, 0.1, 0.9, 0.2])
    assert state.done.tolist() == [True]


def test_masks_behind_an_eos_are_filled_while_one_is_before_it(
    backend: str, op_device: str
) -> None:
    state = state_of([[M, M, M, M]], op_device)
    step(state, [1, EOS, 3, 4], [0.1, 0.9, 0.2, 0.3])
    assert state.tokens.tolist() == [[M, EOS, M, M]]
    step(state, [1, 2, 3, 4], [0.1, 0.9, 0.2, 0.3])
    assert state.tokens.tolist() == [[M, EOS, M, 4]]
    assert state.done.tolist() == [False]
    step(state, [1, 2, 3, 4], [0.5, 0.9, 0.2, 0.3])
    assert state.tokens.tolist() == [[1, EOS, M, 4]]
    assert state.done.tolist() == [True]
    assert state.masks_left.tolist() == [1]


def test_no_id_ends_a_block_without_an_eos_id(backend: str, op_device: str) -> None:
    state = state_of([[M, M, M]], op_device)
    candidate = torch.tensor([[EOS, 2, 3]], dtype=torch.int32, device=op_device)
    remask_scatter(state, candidate, torch.ones(1, 3, device=op_device), Rule(), mask_id=MASK)
    assert (state.tokens.tolist(), state.done.tolist()) == ([[EOS, M, M]], [False])


def test_start() -> None:
    tokens = torch.tensor([[M, 1, M], [1, 2, 3], [M, M, M]])
    state = BlockState.start(tokens, MASK)
    assert state.tokens is tokens
    assert torch.equal(state.fixed, tokens != M)
    assert state.masks_left.tolist() == [2, 0, 3]
    assert state.done.tolist() == [False, True, False]
    assert state.step.tolist() == state.edit_step.tolist() == [0, 0, 0]
    assert state.commit_step.eq(-1).all() and state.commit_confidence.eq(0).all()
    dtypes = [torch.int64, torch.bool, torch.int32, torch.float32, *[torch.int32] * 3, torch.bool]
    assert [x.dtype for x in state] == dtypes
    assert all(x.is_contiguous() for x in state)


def test_start_with_a_draft_or_without_masks() -> None:
    tokens = torch.tensor([[7, M, M], [1, 2, 3]])
    fixed = torch.tensor([[True, True, False], [False, True, True]])
    state = BlockState.start(tokens, MASK, fixed=fixed)
    assert state.fixed is fixed
    # A mask that is given counts as text; a draft leaves something to do.
    assert state.masks_left.tolist() == [1, 0]
    assert state.done.tolist() == [False, False]
    state = BlockState.start(tokens, MASK, undecided=~fixed)
    assert torch.equal(state.fixed, fixed)
    assert state.masks_left.tolist() == [1, 1]


def test_no_requests(backend: str, op_device: str) -> None:
    state = BlockState.start(torch.empty(0, 4, dtype=torch.int32, device=op_device), MASK)
    assert not step(state, [], []).item()


# --- whole runs


@pytest.mark.parametrize("block", BLOCKS)
def test_budget_splits_masks_evenly_and_earlier_steps_take_the_remainder(
    block: int, triton_device: str
) -> None:
    budgets = sorted({1, 3, 7, block, block + 5})
    for steps in budgets:
        # The second request starts with a third of its block filled.
        tokens = torch.full((2, block), MASK, dtype=torch.int32, device=triton_device)
        tokens[1, : block // 3] = 1
        state = BlockState.start(tokens, MASK)
        masks = state.masks_left.tolist()
        with forced_backend("triton"):
            # Nothing is left to do after `steps` steps, nor is anything done too early.
            for n in range(min(steps, 12)):
                candidate, confidence = random_candidates(2, block, triton_device, seed=n)
                remask_scatter(
                    state, candidate, confidence, Rule(steps=steps), mask_id=MASK, eos_id=EOS
                )
        for request, count in enumerate(masks):
            each, remainder = divmod(count, steps)
            expected = [each + (n < remainder) for n in range(min(steps, 12))]
            counts = [state.commit_step[request].eq(n).sum().item() for n in range(len(expected))]
            assert counts == expected, f"{count} masks in {steps} steps"
        assert state.done.all() == (steps <= 12 or max(masks) <= 12)


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param({"threshold": 0.75}, id="threshold"),
        pytest.param({"top_k": 3}, id="top-k"),
        pytest.param({"threshold": 0.75, "top_k": 3}, id="threshold-or-top-k"),
        pytest.param({"steps": 4}, id="budget"),
        pytest.param({"steps": 4, "threshold": 0.75}, id="budget-and-threshold"),
    ],
)
@pytest.mark.parametrize("block", BLOCKS)
def test_whole_runs_agree_on_all_backends(block: int, rule: dict, triton_device: str) -> None:
    batch = 1 + block % 5
    tokens = torch.full((batch, block), MASK, dtype=torch.int64, device=triton_device)
    tokens[:, 0] = 1
    tokens[0, block // 2 :: 2] = 2
    start, rule = BlockState.start(tokens, MASK), Rule(**rule)
    guarded = {backend: [Guarded(x) for x in start] for backend in ("triton", "torch", "reference")}
    states = {name: BlockState(*(g.tensor for g in gs)) for name, gs in guarded.items()}
    for n in range(4):
        candidate, confidence = random_candidates(batch, block, triton_device, seed=n, levels=7)
        candidate[candidate % 17 == 0] = EOS
        inputs = [Guarded(candidate), Guarded(confidence)]
        for name, state in states.items():
            with forced_backend(name), unchanged(candidate=candidate, confidence=confidence):
                remask_scatter(state, *(x.tensor for x in inputs), rule, mask_id=MASK, eos_id=EOS)
        for name in ("triton", "torch"):
            for field, ours, theirs in zip(
                BlockState._fields, states[name], states["reference"], strict=True
            ):
                assert_same_bits(ours, theirs, f"state.{field} on {name}, step {n}")
        for buffer in (*inputs, *(g for gs in guarded.values() for g in gs)):
            buffer.check()
