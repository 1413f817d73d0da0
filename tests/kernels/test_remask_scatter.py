"""remask_scatter on cases one can read: committing, ending, editing, remasking, noise."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import reference
import torch
from numeric import Guarded, assert_same_bits, unchanged
from torch import Tensor

from dlm_kernels import RULES, BlockState, Noise, Rule, RuleTable, new_error_word, remask_scatter
from dlm_kernels.backend import forced_backend
from dlm_kernels.error_word import NO_CANDIDATE
from dlm_kernels.noise import RANDOM_CONFIDENCE, RENOISE, philox, uniform

MASK, EOS, VOCAB = 100, 11, 90
M = MASK
NAN, INF = math.nan, math.inf


class Op:
    """One of the implementations, on lists."""

    def __init__(self, remask: Callable, device: str) -> None:
        self.remask, self.device = remask, device

    def ints(self, values: list, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def start(
        self, *tokens: list[int], n_fixed: int = 0, undecided: bool = False, **options
    ) -> BlockState:
        """Blocks of which only the first positions are given; all others are undecided if asked."""
        ids = self.ints(list(tokens), **options)
        fixed = torch.zeros_like(ids, dtype=torch.bool)
        fixed[:, :n_fixed] = True
        return BlockState.start(ids, MASK, undecided=~fixed if undecided else None, fixed=fixed)

    def step(
        self,
        state: BlockState,
        candidate: list,
        confidence: list,
        rule: Rule | RuleTable,
        token_probability: list | None = None,
        **options,
    ) -> int:
        """One step; returns the error word."""
        error, shape = new_error_word(self.device), state.tokens.shape

        def floats(values: list) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device).view(shape)

        options = {"mask_id": MASK, "eos_id": EOS} | options
        if token_probability is not None:
            options["token_probability"] = floats(token_probability)
        ids = self.ints(candidate).view(shape)
        self.remask(state, ids, floats(confidence), rule, error=error, **options)
        return int(error)

    def noise(self, batch: int, vocab_size: int = VOCAB) -> Noise:
        position = 1000 * torch.arange(batch, dtype=torch.int32, device=self.device)
        return Noise(2**40 + torch.arange(batch, device=self.device), position, vocab_size)


@pytest.fixture(params=["triton", "torch", "reference"])
def op(request: pytest.FixtureRequest) -> Iterator[Op]:
    if request.param == "reference":
        yield Op(reference.remask_scatter, "cpu")
        return
    name = "triton_device" if request.param == "triton" else "device"
    with forced_backend(request.param):
        yield Op(remask_scatter, request.getfixturevalue(name))


def places(flags: Tensor) -> list[int]:
    return flags.nonzero().flatten().tolist()


# --- committing


@pytest.mark.parametrize("token_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_every_field_after_one_step(token_dtype: torch.dtype, op: Op) -> None:
    state = op.start([7, M, M, M, M], n_fixed=1, dtype=token_dtype)
    confidence = [1.0, 0.5, 0.9, 0.25, 0.95]
    assert not op.step(state, [1, 2, 3, 4, 5], confidence, Rule(threshold=0.9))
    assert state.tokens.tolist() == [[7, M, 3, M, 5]]
    assert state.commit_step.tolist() == [[-1, -1, 0, -1, 0]]
    assert state.commit_confidence[0].tolist() == pytest.approx([0, 0, 0.9, 0, 0.95])
    assert state.fixed.tolist() == [[True, False, False, False, False]]
    assert [x.tolist() for x in state[4:]] == [[2], [1], [0], [False]]
    op.step(state, [1, 2, 3, 4, 5], confidence, Rule(top_k=2))
    assert state.tokens.tolist() == [[7, 2, 3, 4, 5]]
    assert state.commit_step.tolist() == [[-1, 1, 0, 1, 0]]
    assert [x.tolist() for x in state[4:]] == [[0], [2], [0], [True]]


SURE = [0.3, 0.9, 0.5, 0.2]
FACTORED = [0.75, 0.5, 0.875, 0.75]  # (n + 1)(1 - c_n) is 0.25, 0.75, 1, 2.5 in their order
ENTROPY = {"confidence": "entropy", "entropy_bound": 0.5}
# What of a block of four masks is committed.
COMMITS = {
    "default-is-the-best-one": ({}, SURE, [1]),
    "top-2": ({"top_k": 2}, SURE, [1, 2]),
    "top-k-past-the-block": ({"top_k": 9}, SURE, [0, 1, 2, 3]),
    "threshold": ({"threshold": 0.4}, SURE, [1, 2]),
    "none-passes-the-best-one": ({"threshold": 0.95}, SURE, [1]),
    "threshold-is-reached": ({"threshold": 0.5}, SURE, [1, 2]),
    "float32-of-0.9-is-reached": ({"threshold": 0.9}, [0.1, 0.9, 0.1, 0.1], [1]),
    "or-else-top-3": ({"threshold": 0.8, "top_k": 3}, SURE, [0, 1, 2]),
    "all-that-pass": ({"threshold": 0.25, "top_k": 2}, SURE, [0, 1, 2]),
    "ties-to-the-lowest-position": ({"top_k": 2}, [0.5, 0.5, 0.5, 0.5], [0, 1]),
    "tie-for-the-last-rank": ({"top_k": 2}, [0.2, 0.5, 0.9, 0.5], [1, 2]),
    "all-zero": ({}, [0.0, 0.0, 0.0, 0.0], [0]),
    "zeros-of-either-sign-tie": ({}, [-0.0, 0.0, 0.0, -0.0], [0]),
    "negative-confidence": ({}, [-3.0, -1.0, -2.0, -9.0], [1]),
    "infinities": ({"top_k": 3}, [0.3, INF, 0.5, -INF], [0, 1, 2]),
    "all-minus-inf": ({"top_k": 2}, [-INF] * 4, [0, 1]),
    "nan-never": ({"top_k": 3}, [NAN, 0.1, NAN, 0.2], [1, 3]),
    "nan-fails-0": ({"threshold": 0.0}, [NAN, 0.1, 0.3, 0.2], [1, 2, 3]),
    "all-pass": ({"threshold": -INF}, SURE, [0, 1, 2, 3]),
    "none-can-pass": ({"threshold": INF}, SURE, [1]),
    "first-of-3-steps": ({"steps": 3}, SURE, [1, 2]),
    "one-step": ({"steps": 1}, SURE, [0, 1, 2, 3]),
    "budget-and-threshold": ({"steps": 4, "threshold": 0.5}, SURE, [1, 2]),
    "strict-threshold": ({"threshold": 0.5, "strict": True}, [0.5, 0.75, 0.5, 0.9], [1, 3]),
    "strict-none-passes": ({"threshold": 0.5, "strict": True}, [0.5, 0.5, 0.25, 0.5], [0]),
    "strict-inf": ({"threshold": INF, "strict": True}, [0.5, INF, 1.0, INF], [1]),
    "factor-is-reached": ({"factor": 1.0}, FACTORED, [0, 2]),
    "factor": ({"factor": 1.1}, FACTORED, [0, 2, 3]),
    "factor-none-passes": ({"factor": 0.25}, FACTORED, [2]),
    "factor-all": ({"factor": 9.0}, FACTORED, [0, 1, 2, 3]),
    "factor-or-top-3": ({"factor": 1.0, "top_k": 3}, FACTORED, [0, 2, 3]),
    # The sums before each, in order: 0, 0.125, 0.5, 1.
    "bound-is-reached": (ENTROPY, [-0.375, -0.5, -0.125, -9.0], [0, 1, 2]),
    "bound-is-exceeded": (ENTROPY, [-0.375, -0.5, -0.25, -9.0], [0, 2]),
    "the-least-entropy-always": (ENTROPY, [-7.0, -5.0, -6.0, -9.0], [1]),
    "no-entropy": (ENTROPY, [0.0, 0.0, -0.0, 0.0], [0, 1, 2, 3]),
    # Rounding can leave an entropy just below 0; it counts as 0.
    "negative-entropy": (ENTROPY, [1e-3, -0.5, -0.5, -0.5], [0, 1, 2]),
    "infinite-entropy": (ENTROPY, [-INF, -0.5, -INF, -0.5], [1, 3]),
    "nan-entropy": (ENTROPY, [NAN, -0.375, NAN, -0.5], [1, 3]),
    # 2097152.75 units each: rounded down, two of them would be the bound.
    "entropies-are-rounded": (
        {"confidence": "entropy", "entropy_bound": 2.0**19},
        [-262144.09375, -262144.09375, -9e5, -9e5],
        [0, 1],
    ),
    "bound-and-budget": (ENTROPY | {"steps": 2}, [-7.0, -5.0, -6.0, -9.0], [1, 2]),
    "bound-or-threshold": (ENTROPY | {"threshold": -6.0}, [-7.0, -5.0, -6.0, -9.0], [1, 2]),
    "margin": ({"confidence": "margin", "top_k": 2}, [0.1, 0.0, 0.2, 0.3], [2, 3]),
}


@pytest.mark.parametrize(("rule", "confidence", "committed"), COMMITS.values(), ids=list(COMMITS))
def test_which_positions_are_committed(
    rule: dict, confidence: list[float], committed: list[int], op: Op
) -> None:
    state = op.start([M] * 4)
    assert not op.step(state, [1, 2, 3, 4], confidence, Rule(**rule))
    assert places(state.commit_step[0] == 0) == committed
    assert state.tokens.tolist() == [[i + 1 if i in committed else M for i in range(4)]]


def test_a_table_gives_each_request_its_rule(op: Op) -> None:
    names = ["threshold", "top-2", "strict-threshold", "factor", "one-step", "bound-is-reached"]
    cases = [COMMITS[name] for name in names]
    state = op.start(*[[M] * 4] * len(cases))
    table = RuleTable.pack([Rule(**rule) for rule, *_ in cases], op.device)
    op.step(state, [[1, 2, 3, 4]] * len(cases), [confidence for _, confidence, _ in cases], table)
    for request, (*_, committed) in enumerate(cases):
        assert places(state.commit_step[request] == 0) == committed


@pytest.mark.parametrize("rule", [{}, {"threshold": 0.1}, {"top_k": 4}, {"steps": 1}], ids=str)
def test_a_position_without_a_candidate_stays_masked(rule: dict, op: Op) -> None:
    state = op.start([M, M, M, 7])
    assert not op.step(state, [-1, MASK, 3, 9], [0.99, 0.98, 0.2, 1.0], Rule(**rule))
    assert state.tokens.tolist() == [[M, M, 3, 7]]
    assert state.masks_left.tolist() == [2]


@pytest.mark.parametrize(
    ("candidate", "confidence"),
    [
        pytest.param([-1, -1, -1], [0.9, 0.9, 0.9], id="negative"),
        pytest.param([MASK, MASK, MASK], [0.9, 0.9, 0.9], id="mask-id"),
        pytest.param([1, 2, 3], [NAN] * 3, id="nan"),
        pytest.param([-(2**31), 5, MASK], [0.9, NAN, 0.9], id="each-another-way"),
    ],
)
def test_no_usable_candidate_sets_the_error_word(
    candidate: list[int], confidence: list[float], op: Op
) -> None:
    state, rule = op.start([M, M, M], [M, 8, 8]), Rule(threshold=0.0)
    assert op.step(state, [candidate, [4] * 3], [confidence, [0.5] * 3], rule) == NO_CANDIDATE
    assert state.tokens.tolist() == [[M, M, M], [4, 8, 8]]
    assert state.masks_left.tolist() == [3, 0]
    assert state.done.tolist() == [False, True]
    # A request that is done has no need of candidates.
    state.done.fill_(True)
    assert not op.step(state, [candidate] * 2, [confidence] * 2, rule)


@pytest.mark.parametrize("bound", [1e-6, 0.1, 1e6])
def test_256_entropies_sum_without_overflow(bound: float, op: Op) -> None:
    """Each as large as the bound, or far larger: only the first two fit, or the first."""
    rule = Rule(confidence="entropy", entropy_bound=bound)
    state = op.start(*[[M] * 256] * 3)
    sizes = (bound * 1.001, bound * 0.999, 3e38)
    op.step(state, [[1] * 256] * 3, [[-entropy] * 256 for entropy in sizes], rule)
    assert state.masks_left.tolist() == [255, 254, 255]


# --- the end of a block


@pytest.mark.parametrize(
    ("tokens", "candidate", "after", "done"),
    [
        pytest.param([M, M, M, M], [EOS, 2, 3, 4], [EOS, M, M, M], True, id="eos-first"),
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
    tokens: list[int], candidate: list[int], after: list[int], done: bool, op: Op
) -> None:
    state = op.start(tokens)
    op.step(state, candidate, [0.9, 0.8, 0.7, 0.6], Rule())  # the first masked one is the surest
    assert state.tokens.tolist() == [after]
    assert state.done.tolist() == [done]
    assert state.masks_left.tolist() == [after.count(M)]
    if done:
        with unchanged(*state):
            assert not op.step(state, [1, 2, 3, 4], [1.0] * 4, Rule(threshold=0.0))


def test_no_requests(op: Op) -> None:
    state = BlockState.start(op.ints([]).view(0, 4), MASK)
    assert not op.step(state, [], [], Rule())


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


# --- step after step


class Step(NamedTuple):
    """What one step is given, and some of what its block is like behind it."""

    candidate: list[int]
    confidence: list[float]
    tokens: list[int | None]  # None: a random id
    done: bool = False
    masks_left: int = 0
    edit_step: int = 0
    commit_step: list[int] | None = None
    standing: list[float] | None = None
    error: int = 0


EDITING = Rule(edit_threshold=0.5, edit_steps=4)
REVISING = Rule(threshold=0.9, renoise=True, revise=True, steps=4)
DOUBTING = Rule(top_k=2, remask_below=0.5)
# A rule, tokens of which so many are given, and the steps from there.
RUNS = {
    "an-eos-that-is-given-ends-nothing": (Rule(), [7, EOS, M, M], 2, [
        Step([1, 2, 3, 4], [0.1, 0.1, 0.9, 0.2], [7, EOS, 3, M], masks_left=1),
        Step([1, 2, 3, EOS], [0.1, 0.1, 0.9, 0.2], [7, EOS, 3, EOS], done=True),
    ]),
    "masks-behind-an-eos-are-filled-while-one-is-before-it": (Rule(), [M, M, M, M], 0, [
        Step([1, EOS, 3, 4], [0.1, 0.9, 0.2, 0.3], [M, EOS, M, M], masks_left=3),
        Step([1, EOS, 3, 4], [0.1, 0.9, 0.2, 0.3], [M, EOS, M, 4], masks_left=2),
        Step([1, EOS, 3, 4], [0.5, 0.9, 0.2, 0.3], [1, EOS, M, 4], masks_left=1, done=True),
    ]),
    "edits": (Rule(threshold=0.9, edit_threshold=0.5), [7, 8, 9, M, M, 6], 1, [
        # Fixed; as sure as the bound only; edited; committed; still masked; the same token.
        Step([1, 1, 1, 1, 1, 6], [1.0, 0.5, 0.6, 0.9, 0.8, 0.9], [7, 8, 1, 1, M, 6], masks_left=1,
             commit_step=[-1, -1, 0, 0, -1, -1]),
        # Its own commit may be edited; no candidate, mask id and NaN never edit.
        Step([1, -1, MASK, 2, 3, 4], [1.0, 1.0, 1.0, 0.7, 0.2, NAN], [7, 8, 1, 2, 3, 6], done=True,
             commit_step=[-1, -1, 0, 1, 1, -1]),
    ]),
    "a-draft-is-edited-without-a-mask": (EDITING, [7, 8, 9], 1, [
        Step([1, 2, 3], [0.9, 0.9, 0.1], [7, 2, 9], edit_step=1),
        Step([1, 2, 3], [0.9, 0.9, 0.1], [7, 2, 9], edit_step=2, done=True),
    ]),
    "but-not-by-a-rule-without-further-steps": (Rule(edit_threshold=0.5), [7, 8, 9], 1, [
        Step([1, 2, 3], [0.9, 0.9, 0.9], [7, 8, 9], edit_step=1, done=True),
    ]),
    "edits-go-on-before-an-eos-and-may-replace-it": (EDITING, [M, M, M], 0, [
        Step([1, EOS, 3], [0.1, 0.9, 0.2], [M, EOS, M], masks_left=2),
        # Decided up to the EOS, so this was the last step but for edits.
        Step([1, EOS, 3], [0.9, 0.9, 0.2], [1, EOS, M], masks_left=1),
        Step([1, 5, -1], [0.9, 0.8, 0.2], [1, 5, M], masks_left=1, edit_step=1, error=NO_CANDIDATE),
        Step([1, 5, EOS], [0.9, 0.8, 0.2], [1, 5, EOS], edit_step=1),
        Step([1, 5, EOS], [0.9, 0.8, 0.2], [1, 5, EOS], edit_step=2, done=True),
    ]),
    "an-edited-token-is-not-remasked": (
        Rule(top_k=3, edit_threshold=0.5, remask_below=0.5), [5, 5, 5, M, M, M, M], 0, [
        Step([1] * 7, [0.9, 0.2, 0.2, 0.9, 0.9, 0.9, 0.1], [1, M, M, 1, 1, 1, M], masks_left=3,
             standing=[0.0, 0.4, 0.3, 1.0, 1.0, 1.0, 1.0]),
    ]),
    "the-last-step-of-a-budget-remasks-nothing": (
        Rule(steps=2, remask_below=0.5), [5, 5, M, M, M, M], 0, [
        Step([1] * 6, [0.5] * 6, [M, 5, 1, 1, M, M], masks_left=3, standing=[0.1] * 6),
        Step([1] * 6, [0.5] * 6, [1, 5, 1, 1, 1, 1], done=True, standing=[0.1] * 6),
    ]),
    # A draft without masks commits nothing, so net progress would let nothing be doubted.
    "the-first-step-on-a-draft-remasks-all-that-it-doubts": (DOUBTING, [7, 5, 5, 5, 5], 1, [
        Step([1] * 5, [0.9] * 5, [7, M, 5, M, M], masks_left=3, edit_step=1,
             standing=[0.0, 0.4, 0.9, 0.1, 0.3]),
        Step([1] * 5, [0.9] * 5, [7, 1, 5, 1, M], masks_left=1, edit_step=1,
             standing=[0.0, 0.4, 0.9, 0.1, 0.3]),
    ]),
    "revising": (REVISING, [7, 0, 0, 0], 1, [
        Step([1, 21, 22, 23], [1.0, 0.95, 0.95, 0.1], [7, 21, 22, None], masks_left=1,
             commit_step=[-1, 0, 0, -1]),
        # What was accepted is not accepted for good, and its token is a candidate's again.
        Step([1, 31, 32, 33], [1.0, 0.95, 0.1, 0.2], [7, 31, None, None], masks_left=2,
             commit_step=[-1, 1, -1, -1]),
        # The budget asks for no more than the surest before its last step, which takes all.
        Step([1, 41, 42, 43], [1.0, 0.1, 0.2, 0.3], [7, None, None, 43], masks_left=2,
             commit_step=[-1, -1, -1, 2]),
        # Over, though one position had no candidate.
        Step([1, 51, -1, 53], [1.0, 0.1, 0.2, 0.3], [7, 51, None, 53], masks_left=1, done=True,
             commit_step=[-1, 3, -1, 3]),
    ]),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "tokens", "n_fixed", "steps"), RUNS.values(), ids=list(RUNS))
def test_step_after_step(
    rule: Rule, tokens: list[int], n_fixed: int, steps: list[Step], op: Op
) -> None:
    state = op.start(tokens, n_fixed=n_fixed, undecided=rule.renoise)
    noise = op.noise(1) if rule.renoise else None
    for n, step in enumerate(steps):
        assert state.done.tolist() == [False]
        given = state, step.candidate, step.confidence, rule, step.standing
        assert op.step(*given, noise=noise) == step.error
        found = state.tokens[0].tolist()
        random = [i for i, token in enumerate(step.tokens) if token is None]
        assert all(found[i] != step.candidate[i] for i in random)
        assert [None if i in random else token for i, token in enumerate(found)] == step.tokens
        assert [x.item() for x in state[4:]] == [step.masks_left, n + 1, step.edit_step, step.done]
        confidence = state.commit_confidence[0].tolist()
        for i, committed_at in enumerate(step.commit_step or []):
            assert state.commit_step[0, i] == committed_at
            if committed_at in (-1, n):
                expected = 0 if committed_at < 0 else step.confidence[i]
                assert confidence[i] == pytest.approx(expected)


@pytest.mark.parametrize(
    "rule", [Rule(steps=2, remask_below=0.5), Rule(steps=2, renoise=True, revise=True)]
)
def test_a_budget_that_is_used_up_takes_all_that_is_left(rule: Rule, op: Op) -> None:
    state = op.start([5, M, M], undecided=rule.renoise)
    state.step.fill_(4)
    op.step(state, [1, 2, 3], [0.1] * 3, rule, [0.1] * 3, noise=op.noise(1))
    assert state.tokens.tolist() == [[1 if rule.renoise else 5, 2, 3]]
    assert state.done.tolist() == [True]


def test_no_id_ends_a_block_without_an_eos_id(op: Op) -> None:
    state = op.start([M, M, M])
    op.step(state, [EOS, 2, 3], [1.0] * 3, Rule(), eos_id=None)
    assert (state.tokens.tolist(), state.done.tolist()) == ([[EOS, M, M]], [False])


# --- editing


@pytest.mark.parametrize(
    ("edit_steps", "edits", "steps"),
    [
        pytest.param(0, 9, 1, id="none"),
        pytest.param(1, 9, 2, id="one"),
        pytest.param(3, 9, 4, id="as-many-as-allowed"),
        pytest.param(9, 2, 4, id="until-one-edits-nothing"),
        pytest.param(9, 0, 2, id="the-first-edits-nothing"),
    ],
)
def test_edit_steps(edit_steps: int, edits: int, steps: int, op: Op) -> None:
    """The first step commits all; then as many edit as there are `edits`."""
    rule = Rule(threshold=0.0, edit_threshold=0.5, edit_steps=edit_steps)
    state = op.start([M, M])
    for taken in range(steps):
        assert state.done.tolist() == [False]
        op.step(state, [20, 20 + min(taken, edits)], [0.9, 0.9], rule)
    assert state.tokens.tolist() == [[20, 20 + min(steps - 1, edits)]]
    assert [x.tolist() for x in state[4:]] == [[0], [steps], [steps - 1], [True]]


# --- remasking


@pytest.mark.parametrize(
    ("commits", "standing", "after"),
    [
        pytest.param(1, [0.1, 0.2, 0.3, 0.9], [5, 5, 5, 5], id="one-commit-none-remasked"),
        pytest.param(2, [0.1, 0.2, 0.3, 0.9], [M, 5, 5, 5], id="fewer-than-committed"),
        pytest.param(3, [0.3, 0.2, 0.1, 0.9], [5, M, M, 5], id="the-least-likely-first"),
        pytest.param(4, [0.1, 0.2, 0.3, 0.9], [M, M, M, 5], id="all-that-are-below"),
        pytest.param(4, [0.5, 0.9, 0.3, 0.9], [5, 5, M, 5], id="as-likely-as-the-bound-stays"),
        pytest.param(2, [0.3, 0.2, 0.2, 0.2], [5, M, 5, 5], id="ties-to-the-lowest-position"),
        pytest.param(4, [NAN, 0.2, NAN, 0.9], [5, M, 5, 5], id="nan-never"),
    ],
)
def test_remasking(commits: int, standing: list[float], after: list[int], op: Op) -> None:
    # One fixed, four decided, five masks, whose own probability is not asked for.
    state = op.start([7] + [5] * 4 + [M] * 5, n_fixed=1)
    state.commit_step[:, 1:5] = 3
    state.commit_confidence[:, 1:5] = 0.5
    state.step.fill_(4)
    rule = Rule(top_k=commits, remask_below=0.5)
    op.step(state, list(range(20, 30)), [0.9] * 10, rule, [0.0, *standing, *[0.0] * 5])
    committed = list(range(25, 25 + commits))
    assert state.tokens.tolist() == [[7, *after, *committed, *[M] * (5 - commits)]]
    remasked = [token == M for token in after]
    assert state.commit_step[0, 1:5].tolist() == [-1 if again else 3 for again in remasked]
    assert state.commit_confidence[0, 1:5].eq(0).tolist() == remasked
    assert state.masks_left.tolist() == [5 - commits + sum(remasked)]
    assert not state.done.item()


@pytest.mark.parametrize("block", [1, 7, 33])
def test_remasking_ends(block: int, device: str) -> None:
    """Net progress: at most one step a position, however unlikely every token is."""
    op = Op(remask_scatter, device)
    state = op.start(*[[M] * block] * 3)
    for n in range(block):
        generator = torch.Generator().manual_seed(n)
        sure = torch.rand(3, block, generator=generator).tolist()
        before = state.masks_left.clone()
        op.step(state, [[20 + n] * block] * 3, sure, Rule(threshold=0.3, remask_below=2.0), sure)
        assert (state.masks_left < before).logical_or(before == 0).all()
    assert state.done.all()


# --- noise

RANDOM = Rule(confidence="random", top_k=2)


def words(noise: Noise, block: int, step: int, stream: int) -> Tensor:
    place = noise.position[:, None] + torch.arange(block, device=noise.position.device)
    return philox(noise.seed[:, None], 0 * place, place, 0 * place + step, stream)


def test_random_confidences_are_those_of_the_noise(op: Op) -> None:
    noise, block = op.noise(3), 9
    state = op.start(*[[M] * block] * 3)
    expected = torch.full((3, block), -1, device=op.device)
    sureness = torch.zeros(3, block, device=op.device)
    for n in range(3):
        # What is passed is not read: not even NaN.
        op.step(state, [[5] * block] * 3, [[NAN] * block] * 3, RANDOM, noise=noise)
        drawn = uniform(words(noise, block, n, RANDOM_CONFIDENCE))
        best = torch.where(expected < 0, drawn, -1.0).topk(2, dim=1).indices
        expected.scatter_(1, best, n)
        sureness.scatter_(1, best, drawn.gather(1, best))
    assert state.commit_step.tolist() == expected.tolist()
    assert_same_bits(state.commit_confidence, sureness, "the drawn confidences")


def test_noise_goes_by_absolute_position(op: Op) -> None:
    """A block's place in the batch and in memory changes nothing; its seed and position do."""
    one, two = op.start([M] * 8), op.start([M] * 8, [M] * 8)
    seed, position = op.ints([3, 4], torch.int64), op.ints([50, 60])
    op.step(one, [5] * 8, [0.0] * 8, RANDOM, noise=Noise(seed[1:], position[1:], VOCAB))
    op.step(two, [[5] * 8] * 2, [[0.0] * 8] * 2, RANDOM, noise=Noise(seed, position, VOCAB))
    assert two.tokens[1].tolist() == one.tokens[0].tolist() != two.tokens[0].tolist()


def test_renoising(op: Op) -> None:
    rule, noise = Rule(threshold=0.9, renoise=True), op.noise(2)
    state = op.start(*[[7] + [0] * 5] * 2, undecided=True, n_fixed=1)
    sure = [[1.0, 0.2, 0.95, 0.3, 0.4, 0.5], [1.0, 0.2, 0.3, 0.6, 0.4, 0.5]]
    for n in range(2):
        op.step(state, [[20, 21, 22, 23, 24, 25]] * 2, sure, rule, noise=noise)
        decided = state.commit_step >= 0
        ids = torch.arange(20, 26, device=op.device)
        # The mask id stands nowhere.
        expected = torch.where(decided, ids, words(noise, 6, n, RENOISE) % VOCAB)
        expected[:, 0] = 7
        assert state.tokens.tolist() == expected.tolist()
        assert state.masks_left.tolist() == (~decided[:, 1:]).sum(1).tolist()
    assert state.commit_step.tolist() == [[-1, -1, 0, -1, -1, 1], [-1, -1, -1, 0, -1, 1]]
    assert state.done.tolist() == [False, False]


@pytest.mark.parametrize(("vocab_size", "mask_id"), [(2, 0), (2, 1), (3, 2)])
def test_random_ids_are_never_the_mask(vocab_size: int, mask_id: int, op: Op) -> None:
    noise = op.noise(1, vocab_size)
    canvas = noise.canvas(64, mask_id)
    assert canvas.dtype == torch.int32
    state = op.start(canvas[0].tolist(), undecided=True)
    candidate = [(mask_id + 1) % vocab_size] * 64
    rule = Rule(renoise=True)
    op.step(state, candidate, [0.0] * 64, rule, noise=noise, mask_id=mask_id, eos_id=9)
    others = set(range(vocab_size)) - {mask_id}
    assert set(canvas[0].tolist()) == set(state.tokens[0].tolist()) == others
    if len(others) > 1:
        assert canvas.tolist() != state.tokens.tolist()


def test_an_eos_drawn_by_chance_ends_nothing(op: Op) -> None:
    noise = op.noise(4, vocab_size=2)
    state = op.start(*noise.canvas(8, 7).tolist(), undecided=True)
    rule = Rule(renoise=True)
    op.step(state, [5] * 32, [1.0] * 32, rule, noise=noise, mask_id=7, eos_id=1)
    assert state.tokens[:, 1].eq(1).any()  # right behind the one that is decided
    assert state.done.tolist() == [False] * 4


@pytest.mark.parametrize(
    ("candidate", "confidence", "done"),
    [
        pytest.param([1, 2, 3], [-0.05, -0.05, -0.05], True, id="all-accepted"),
        pytest.param([1, 2, 3], [-0.05, -0.05, -9.0], True, id="the-last-is-never-before-itself"),
        pytest.param([1, 2, 3], [-0.1, -5.0, -9.0], False, id="one-not"),
        pytest.param([1, EOS, 3], [-0.06, -5.0, -9.0], False, id="an-eos-is-not-for-good"),
        pytest.param([1, 2, EOS], [-5.0, -9.0, -0.1], False, id="not-before-the-eos"),
    ],
)
def test_diffusion_gemma_ends(
    candidate: list[int], confidence: list[float], done: bool, op: Op
) -> None:
    state = op.start([0, 0, 0], undecided=True)
    op.step(state, candidate, confidence, RULES["diffusion_gemma"], noise=op.noise(1))
    assert state.done.tolist() == [done]


# --- whole runs


@pytest.mark.parametrize("block", [1, 9, 31, 32, 33, 100, 256])
def test_whole_runs_agree_on_all_backends(block: int, triton_device: str) -> None:
    """In blocks of every launch entry, on few confidences with ties, a rule a request."""
    rules = [
        Rule(threshold=0.75),
        Rule(top_k=3),
        Rule(threshold=0.75, strict=True, top_k=3, edit_threshold=0.5, edit_steps=2),
        Rule(steps=4, remask_below=0.4),
        Rule(steps=4, threshold=0.75),
    ]
    tokens = torch.full((len(rules), block), MASK, dtype=torch.int64, device=triton_device)
    tokens[:, 0] = 1
    tokens[0, block // 2 :: 2] = 2
    start, table = BlockState.start(tokens, MASK), RuleTable.pack(rules, triton_device)
    guarded = {name: [Guarded(x) for x in start] for name in ("triton", "torch", "reference")}
    states = {name: BlockState(*(g.tensor for g in gs)) for name, gs in guarded.items()}
    generator = torch.Generator().manual_seed(block)
    for n in range(4):
        candidate = torch.randint(10, 90, tokens.shape, generator=generator, dtype=torch.int32)
        levels = torch.randint(0, 8, (2, *tokens.shape), generator=generator) / 7
        inputs = [Guarded(x.to(triton_device)) for x in (candidate, *levels)]
        ids, confidence, standing = (x.tensor for x in inputs)
        options = {"mask_id": MASK, "eos_id": EOS, "token_probability": standing}
        reference.remask_scatter(states["reference"], ids, confidence, table, **options)
        for name in ("triton", "torch"):
            with forced_backend(name), unchanged(ids, confidence, standing):
                remask_scatter(states[name], ids, confidence, table, **options)
            for field, ours, theirs in zip(
                BlockState._fields, states[name], states["reference"], strict=True
            ):
                assert_same_bits(ours, theirs, f"state.{field} on {name}, step {n}")
        for buffer in (*inputs, *(g for gs in guarded.values() for g in gs)):
            buffer.check()
