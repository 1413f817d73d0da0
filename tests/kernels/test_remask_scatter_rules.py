"""remask_scatter's further rules on cases one can read: passing, editing, remasking, noise."""

import math

import pytest
import torch
from numeric import assert_same_bits, forced_backend
from torch import Tensor

from dlm_kernels import RULES, BlockState, Noise, Rule, RuleTable, new_error_word, remask_scatter
from dlm_kernels.noise import RANDOM_CONFIDENCE, RENOISE, philox, uniform

MASK, EOS, VOCAB = 100, 11, 90
M = MASK
BACKENDS = ("triton", "torch", "reference")


def start(
    tokens: list[list[int]], device: str, *, undecided: bool | None = None, n_fixed: int = 0
) -> BlockState:
    """Blocks of which only the first `n_fixed` positions are given, and all others `undecided`."""
    ids = torch.tensor(tokens, dtype=torch.int32, device=device)
    fixed = torch.zeros_like(ids, dtype=torch.bool)
    fixed[:, :n_fixed] = True
    return BlockState.start(ids, MASK, undecided=~fixed if undecided else None, fixed=fixed)


def noise_for(batch: int, device: str, vocab_size: int = VOCAB) -> Noise:
    position = 1000 * torch.arange(batch, dtype=torch.int32, device=device)
    seed = 2**40 + torch.arange(batch, device=device)
    return Noise(seed, position, vocab_size)


def step(
    state: BlockState,
    candidate: list,
    confidence: list,
    rule: Rule | RuleTable,
    *,
    token_probability: list | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """One step of the public function on lists; returns the error word."""
    device, shape = state.tokens.device, state.tokens.shape
    error = new_error_word(device)

    def floats(values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(shape)

    remask_scatter(
        state,
        torch.tensor(candidate, dtype=torch.int32, device=device).view(shape),
        floats(confidence),
        rule,
        mask_id=MASK,
        eos_id=EOS,
        token_probability=None if token_probability is None else floats(token_probability),
        noise=noise,
        error=error,
    )
    return error


# --- what passes

ENTROPY = Rule(confidence="entropy", entropy_bound=0.5)


@pytest.mark.parametrize(
    ("rule", "confidence", "committed"),
    [
        pytest.param(
            Rule(threshold=0.5, strict=True), [0.5, 0.75, 0.5, 0.9], [1, 3], id="strict-threshold"
        ),
        pytest.param(
            Rule(threshold=0.5, strict=True), [0.5, 0.5, 0.25, 0.5], [0], id="strict-none-passes"
        ),
        pytest.param(
            Rule(threshold=math.inf, strict=True), [0.5, math.inf, 1.0, math.inf], [1], id="inf"
        ),
        # (n + 1)(1 - c_n) is 0.25, 0.75, 1, 2.5 in order of confidence.
        pytest.param(Rule(factor=1.0), [0.75, 0.5, 0.875, 0.75], [0, 2], id="factor-is-reached"),
        pytest.param(Rule(factor=1.1), [0.75, 0.5, 0.875, 0.75], [0, 2, 3], id="factor"),
        pytest.param(Rule(factor=0.25), [0.75, 0.5, 0.875, 0.75], [2], id="factor-none-passes"),
        pytest.param(Rule(factor=9.0), [0.75, 0.5, 0.875, 0.75], [0, 1, 2, 3], id="factor-all"),
        pytest.param(
            Rule(factor=1.0, top_k=3), [0.75, 0.5, 0.875, 0.75], [0, 2, 3], id="factor-or-top-3"
        ),
        # The sums before each, in order: 0, 0.125, 0.5, 1.
        pytest.param(ENTROPY, [-0.375, -0.5, -0.125, -9.0], [0, 1, 2], id="bound-is-reached"),
        pytest.param(ENTROPY, [-0.375, -0.5, -0.25, -9.0], [0, 2], id="bound-is-exceeded"),
        pytest.param(ENTROPY, [-7.0, -5.0, -6.0, -9.0], [1], id="the-least-entropy-always"),
        pytest.param(ENTROPY, [0.0, 0.0, -0.0, 0.0], [0, 1, 2, 3], id="no-entropy"),
        # Rounding can leave an entropy just below 0; it counts as 0.
        pytest.param(ENTROPY, [1e-3, -0.5, -0.5, -0.5], [0, 1, 2], id="negative-entropy"),
        pytest.param(ENTROPY, [-math.inf, -0.5, -math.inf, -0.5], [1, 3], id="infinite-entropy"),
        pytest.param(ENTROPY, [math.nan, -0.375, math.nan, -0.5], [1, 3], id="nan-entropy"),
        pytest.param(
            Rule(confidence="entropy", entropy_bound=0.5, steps=2),
            [-7.0, -5.0, -6.0, -9.0],
            [1, 2],
            id="bound-and-budget",
        ),
        pytest.param(
            Rule(confidence="entropy", entropy_bound=0.5, threshold=-6.0),
            [-7.0, -5.0, -6.0, -9.0],
            [1, 2],
            id="bound-or-threshold",
        ),
        pytest.param(Rule(confidence="margin", top_k=2), [0.1, 0.0, 0.2, 0.3], [2, 3], id="margin"),
    ],
)
def test_which_positions_are_committed(
    rule: Rule, confidence: list[float], committed: list[int], backend: str, op_device: str
) -> None:
    state = start([[M] * 4], op_device)
    assert not step(state, [1, 2, 3, 4], confidence, rule).item()
    assert state.commit_step[0].eq(0).nonzero().flatten().tolist() == committed
    assert state.tokens.tolist() == [[i + 1 if i in committed else M for i in range(4)]]


@pytest.mark.parametrize("bound", [1e-6, 0.1, 3.0, 1e6])
def test_256_entropies_sum_without_overflow(bound: float, triton_device: str) -> None:
    """Each as large as the bound, or far larger: only the first two fit, or the first."""
    rule = Rule(confidence="entropy", entropy_bound=bound)
    for backend in BACKENDS:
        with forced_backend(backend):
            for entropy, fit in ((bound * 1.001, 1), (bound * 0.999, 2), (3e38, 1)):
                state = start([[M] * 256], triton_device)
                step(state, [1] * 256, [-entropy] * 256, rule)
                assert state.masks_left.tolist() == [256 - fit], backend


def test_a_table_gives_each_request_its_rule(backend: str, op_device: str) -> None:
    rules = [
        Rule(threshold=0.4),
        Rule(top_k=2),
        Rule(threshold=0.3, strict=True),
        Rule(factor=2.0),
        Rule(steps=1),
        Rule(confidence="entropy", entropy_bound=0.5),
        Rule(),
    ]
    confidence = [0.3, 0.9, 0.5, 0.2]
    tokens = torch.full((7, 4), M, dtype=torch.int32, device=op_device)
    mixed, table = BlockState.start(tokens, MASK), RuleTable.pack(rules, op_device)
    rows = [confidence] * 5 + [[-0.6, -0.1, -0.3, -0.9], confidence]
    step(mixed, [[1, 2, 3, 4]] * 7, rows, table)
    assert mixed.masks_left.tolist() == [2, 2, 2, 2, 0, 1, 3]
    for request, rule in enumerate(rules):
        alone = start([[M] * 4], op_device)
        step(alone, [1, 2, 3, 4], rows[request], rule)
        assert_same_bits(mixed.tokens[request], alone.tokens[0], f"tokens under {rule}")


# --- editing


def test_edits(backend: str, op_device: str) -> None:
    rule = Rule(threshold=0.9, edit_threshold=0.5)
    state = start([[7, 8, 9, M, M, 6]], op_device, n_fixed=1)
    # Fixed; as sure as the bound only; edited; committed; still masked; the same token.
    error = step(state, [1, 1, 1, 1, 1, 6], [1.0, 0.5, 0.6, 0.9, 0.8, 0.9], rule)
    assert not error.item()
    assert state.tokens.tolist() == [[7, 8, 1, 1, M, 6]]
    assert state.commit_step.tolist() == [[-1, -1, 0, 0, -1, -1]]
    assert state.commit_confidence[0].tolist() == pytest.approx([0, 0, 0.6, 0.9, 0, 0])
    # The step's own commit may be edited in the next one; no candidate, mask id and NaN never edit.
    step(state, [1, -1, MASK, 2, 3, 4], [1.0, 1.0, 1.0, 0.7, 0.2, math.nan], rule)
    assert state.tokens.tolist() == [[7, 8, 1, 2, 3, 6]]
    assert state.commit_step.tolist() == [[-1, -1, 0, 1, 1, -1]]
    assert state.edit_step.tolist() == [0]
    assert state.done.tolist() == [True]


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
def test_edit_steps(edit_steps: int, edits: int, steps: int, backend: str, op_device: str) -> None:
    """The first step commits all; then as many edit as there are `edits`."""
    rule = Rule(threshold=0.0, edit_threshold=0.5, edit_steps=edit_steps)
    state = start([[M, M]], op_device)
    taken = 0
    while not state.done.all():
        token = min(taken, edits)
        step(state, [20, 20 + token], [0.9, 0.9], rule)
        taken += 1
        assert taken < 20
    assert taken == steps
    assert state.step.tolist() == [steps]
    assert state.edit_step.tolist() == [steps - 1]
    assert state.tokens.tolist() == [[20, 20 + min(steps - 1, edits)]]
    assert state.masks_left.tolist() == [0]


def test_a_draft_is_edited_without_a_mask(backend: str, op_device: str) -> None:
    rule = Rule(edit_threshold=0.5, edit_steps=4)
    state = start([[7, 8, 9]], op_device, n_fixed=1)
    assert state.done.tolist() == [False]
    step(state, [1, 2, 3], [0.9, 0.9, 0.1], rule)
    assert state.tokens.tolist() == [[7, 2, 9]]
    assert state.done.tolist() == [False]
    step(state, [1, 2, 3], [0.9, 0.9, 0.1], rule)
    assert state.done.tolist() == [True]
    # A rule without further steps changes nothing where nothing is undecided.
    state = start([[7, 8, 9]], op_device, n_fixed=1)
    step(state, [1, 2, 3], [0.9, 0.9, 0.9], Rule(edit_threshold=0.5))
    assert state.tokens.tolist() == [[7, 8, 9]]
    assert state.done.tolist() == [True]


def test_edits_go_on_before_an_eos_and_may_replace_it(backend: str, op_device: str) -> None:
    rule = Rule(edit_threshold=0.5, edit_steps=4)
    state = start([[M, M, M]], op_device)
    step(state, [1, EOS, 3], [0.1, 0.9, 0.2], rule)
    step(state, [1, EOS, 3], [0.9, 0.9, 0.2], rule)
    assert state.tokens.tolist() == [[1, EOS, M]]
    # Decided up to the EOS, so this was the last step but for edits.
    assert state.done.tolist() == [False] and state.edit_step.tolist() == [0]
    step(state, [1, 5, -1], [0.9, 0.8, 0.2], rule)
    assert state.tokens.tolist() == [[1, 5, M]]
    assert state.done.tolist() == [False] and state.edit_step.tolist() == [1]
    step(state, [1, 5, EOS], [0.9, 0.8, 0.2], rule)
    assert state.tokens.tolist() == [[1, 5, EOS]]
    step(state, [1, 5, EOS], [0.9, 0.8, 0.2], rule)
    assert state.done.tolist() == [True] and state.edit_step.tolist() == [2]


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
        pytest.param(4, [math.nan, 0.2, math.nan, 0.9], [5, M, 5, 5], id="nan-never"),
    ],
)
def test_remasking(
    commits: int, standing: list[float], after: list[int], backend: str, op_device: str
) -> None:
    rule = Rule(top_k=commits, remask_below=0.5)
    # One fixed, four decided, five masks.
    state = start([[7] + [5] * 4 + [M] * 5], op_device, n_fixed=1)
    state.commit_step[:, 1:5] = 3
    state.commit_confidence[:, 1:5] = 0.5
    state.step.fill_(4)
    step(
        state,
        list(range(20, 30)),
        [0.9] * 10,
        rule,
        # A mask's own probability is not asked for.
        token_probability=[0.0, *standing, 0.0, 0.0, 0.0, 0.0, 0.0],
    )
    committed = list(range(25, 25 + commits))
    assert state.tokens.tolist() == [[7, *after, *committed, *[M] * (5 - commits)]]
    remasked = [token == M for token in after]
    assert state.commit_step[0, 1:5].tolist() == [-1 if again else 3 for again in remasked]
    assert state.commit_confidence[0, 1:5].eq(0).tolist() == remasked
    assert state.masks_left.tolist() == [5 - commits + sum(remasked)]
    assert state.masks_left.item() < 5
    assert not state.done.item()


def test_an_edited_token_is_not_remasked(backend: str, op_device: str) -> None:
    rule = Rule(top_k=3, edit_threshold=0.5, remask_below=0.5)
    state = start([[5, 5, 5, M, M, M, M]], op_device)
    state.commit_step[:, :3] = 0
    confidence = [0.9, 0.2, 0.2, 0.9, 0.9, 0.9, 0.1]
    step(state, [1] * 7, confidence, rule, token_probability=[0.0, 0.4, 0.3, 1.0, 1.0, 1.0, 1.0])
    assert state.tokens.tolist() == [[1, M, M, 1, 1, 1, M]]


def test_the_last_step_of_a_budget_remasks_nothing(backend: str, op_device: str) -> None:
    for taken, left in ((0, 3), (1, 0)):
        state = start([[5, 5, M, M, M, M]], op_device)
        state.commit_step[:, :2] = 0
        state.step.fill_(taken)
        rule = Rule(steps=2, remask_below=0.5)
        step(state, [1] * 6, [0.5] * 6, rule, token_probability=[0.1] * 6)
        assert state.masks_left.tolist() == [left]
        assert state.done.tolist() == [left == 0]


def test_the_first_step_on_a_draft_remasks_all_that_it_doubts(backend: str, op_device: str) -> None:
    """A draft without masks commits nothing, so net progress would let nothing be doubted."""
    rule = Rule(top_k=2, remask_below=0.5)
    state = start([[7, 5, 5, 5, 5]], op_device, n_fixed=1)
    state.done.fill_(False)
    doubts = {"token_probability": [0.0, 0.4, 0.9, 0.1, 0.3]}
    step(state, [1] * 5, [0.9] * 5, rule, **doubts)
    assert state.tokens.tolist() == [[7, M, 5, M, M]]
    assert (state.masks_left.tolist(), state.done.tolist()) == ([3], [False])
    step(state, [1] * 5, [0.9] * 5, rule, **doubts)  # position 2 stays, two of three are committed
    assert state.tokens.tolist() == [[7, 1, 5, 1, M]]


@pytest.mark.parametrize("block", [1, 7, 33])
def test_remasking_ends(block: int, device: str) -> None:
    """Net progress: at most one step a position, however unlikely every token is."""
    state = start([[M] * block] * 3, device)
    for n in range(block):
        generator = torch.Generator().manual_seed(n)
        sure = torch.rand(3, block, generator=generator).tolist()
        before = state.masks_left.clone()
        rule = Rule(threshold=0.3, remask_below=2.0)
        step(state, [[20 + n] * block] * 3, sure, rule, token_probability=sure)
        assert (state.masks_left < before).logical_or(before == 0).all()
    assert state.done.all()


# --- noise


def test_random_confidences_are_those_of_the_noise(backend: str, op_device: str) -> None:
    noise, block = noise_for(3, op_device), 9
    tokens = torch.full((3, block), M, dtype=torch.int32, device=op_device)
    state = BlockState.start(tokens, MASK)
    expected = torch.full((3, block), -1, device=op_device)
    sureness = torch.zeros(3, block, device=op_device)
    for n in range(3):
        # What is passed is not read: not even NaN.
        step(state, [[5] * block] * 3, [[math.nan] * block] * 3, RANDOM, noise=noise)
        place = noise.position[:, None] + torch.arange(block, device=op_device)
        zero = torch.zeros_like(place)
        drawn = uniform(philox(noise.seed[:, None], zero, place, zero + n, RANDOM_CONFIDENCE))
        best = torch.where(expected < 0, drawn, -1.0).topk(2, dim=1).indices
        expected.scatter_(1, best, n)
        sureness.scatter_(1, best, drawn.gather(1, best))
    assert state.commit_step.tolist() == expected.tolist()
    assert_same_bits(state.commit_confidence, sureness, "the drawn confidences")


RANDOM = Rule(confidence="random", top_k=2)


def test_noise_goes_by_absolute_position(backend: str, op_device: str) -> None:
    """A block's place in the batch and in memory changes nothing; its seed and position do."""
    one = start([[M] * 8], op_device)
    two = start([[M] * 8] * 2, op_device)
    seed = torch.tensor([3, 4], device=op_device)
    position = torch.tensor([50, 60], dtype=torch.int32, device=op_device)
    step(one, [5] * 8, [0.0] * 8, RANDOM, noise=Noise(seed[1:], position[1:], VOCAB))
    step(two, [[5] * 8] * 2, [[0.0] * 8] * 2, RANDOM, noise=Noise(seed, position, VOCAB))
    assert two.tokens[1].tolist() == one.tokens[0].tolist() != two.tokens[0].tolist()


def test_renoising(backend: str, op_device: str) -> None:
    rule, noise = Rule(threshold=0.9, renoise=True), noise_for(2, op_device)
    state = start([[7] + [0] * 5] * 2, op_device, undecided=True, n_fixed=1)
    sure = [[1.0, 0.2, 0.95, 0.3, 0.4, 0.5], [1.0, 0.2, 0.3, 0.6, 0.4, 0.5]]
    for n in range(2):
        # The mask id stands nowhere, and is no candidate.
        step(state, [[20, 21, 22, 23, 24, 25]] * 2, sure, rule, noise=noise)
        place = noise.position[:, None] + torch.arange(6, device=op_device)
        zero = torch.zeros_like(place)
        drawn = philox(noise.seed[:, None], zero, place, zero + n, RENOISE) % VOCAB
        decided = state.commit_step >= 0
        expected = torch.where(decided, torch.arange(20, 26, device=op_device), drawn)
        expected[:, 0] = 7
        assert state.tokens.tolist() == expected.tolist()
        assert state.masks_left.tolist() == (~decided[:, 1:]).sum(1).tolist()
    assert state.commit_step.tolist() == [[-1, -1, 0, -1, -1, 1], [-1, -1, -1, 0, -1, 1]]
    assert state.done.tolist() == [False, False]


def test_random_ids_are_never_the_mask(backend: str, op_device: str) -> None:
    for vocab_size, mask_id in ((2, 0), (2, 1), (3, 2)):
        noise = noise_for(1, op_device, vocab_size)
        canvas = noise.canvas(64, mask_id)
        assert canvas.dtype == torch.int32
        tokens = canvas.clone()
        fixed = torch.zeros_like(tokens, dtype=torch.bool)
        state = BlockState.start(tokens, mask_id, undecided=~fixed, fixed=fixed)
        candidate = torch.full_like(tokens, (mask_id + 1) % vocab_size)
        sure = torch.zeros(1, 64, device=op_device)
        remask_scatter(
            state, candidate, sure, Rule(renoise=True), mask_id=mask_id, eos_id=9, noise=noise
        )
        others = set(range(vocab_size)) - {mask_id}
        assert set(canvas[0].tolist()) == set(state.tokens[0].tolist()) == others
        if len(others) > 1:
            assert canvas.tolist() != state.tokens.tolist()


def test_an_eos_drawn_by_chance_ends_nothing(device: str) -> None:
    noise, rule = noise_for(1, device, 2), Rule(renoise=True)
    fixed = torch.zeros(1, 64, dtype=torch.bool, device=device)
    tokens = noise.canvas(64, 7)
    state = BlockState.start(tokens, 7, undecided=~fixed, fixed=fixed)
    candidate = torch.full_like(tokens, 5)
    remask_scatter(
        state, candidate, torch.ones(1, 64, device=device), rule, mask_id=7, eos_id=1, noise=noise
    )
    assert state.tokens[0, 1:].eq(1).any()
    assert state.done.tolist() == [False]


def test_revising(backend: str, op_device: str) -> None:
    rule = Rule(threshold=0.9, renoise=True, revise=True, steps=4)
    noise = noise_for(1, op_device)
    state = start([[7, 0, 0, 0]], op_device, undecided=True, n_fixed=1)
    step(state, [1, 21, 22, 23], [1.0, 0.95, 0.95, 0.1], rule, noise=noise)
    assert state.commit_step.tolist() == [[-1, 0, 0, -1]]
    assert state.tokens[0, :3].tolist() == [7, 21, 22]
    # What was accepted is not accepted for good, and its token is a candidate's again.
    step(state, [1, 31, 32, 33], [1.0, 0.95, 0.1, 0.2], rule, noise=noise)
    assert state.commit_step.tolist() == [[-1, 1, -1, -1]]
    assert state.commit_confidence[0].tolist() == pytest.approx([0, 0.95, 0, 0])
    assert state.tokens[0, :2].tolist() == [7, 31] and state.tokens[0, 2] != 22
    assert state.masks_left.tolist() == [2]
    # The budget asks for no more than the surest before its last step, which takes all.
    step(state, [1, 41, 42, 43], [1.0, 0.1, 0.2, 0.3], rule, noise=noise)
    assert state.commit_step.tolist() == [[-1, -1, -1, 2]]
    assert state.done.tolist() == [False]
    step(state, [1, 51, -1, 53], [1.0, 0.1, 0.2, 0.3], rule, noise=noise)
    assert state.commit_step.tolist() == [[-1, 3, -1, 3]]
    # Over, though one position had no candidate.
    assert state.done.tolist() == [True] and state.masks_left.tolist() == [1]


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
    candidate: list[int], confidence: list[float], done: bool, backend: str, op_device: str
) -> None:
    state = start([[0, 0, 0]], op_device, undecided=True)
    rule = RULES["diffusion_gemma"]
    step(state, candidate, confidence, rule, noise=noise_for(1, op_device))
    assert state.done.tolist() == [done]
