"""Rules against the implementations they are named after, on hundreds of random blocks.

diffusers and transformers run as installed. Other engines are restated in plain Python, one request
at a time, from what their code does. Both sides get the same candidates and confidences.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dlm_kernels import BlockState, Noise, Rule, RuleTable, new_error_word, remask_scatter
from dlm_kernels.backend import forced_backend

MASK, EOS, VOCAB = 100, 101, 48
BLOCKS = [6, 33]


@pytest.fixture(params=["torch", "triton"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A backend's device and how many random blocks a case has there."""
    triton = request.param == "triton"
    device = request.getfixturevalue("triton_device" if triton else "device")
    many = 1000 if request.config.option.full else 300
    with forced_backend(request.param):
        yield device, 10 if triton and device == "cpu" else many


class Blocks(NamedTuple):
    """Blocks in the middle of a run; the first third of each is a prompt, and half of the rest is
    decided. Confidences differ from one another, those of standing tokens too."""

    tokens: Tensor  # int64 [requests, block]
    fixed: Tensor  # bool
    candidate: Tensor  # int64
    confidence: Tensor  # float32
    token_probability: Tensor  # float32


def random_blocks(requests: int, block: int, seed: int) -> Blocks:
    generator = torch.Generator().manual_seed(1000 * block + seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    shape = requests, block
    tokens, candidate = torch.randint(0, VOCAB, (2, *shape), generator=generator)
    # So that edits find many tokens in place.
    candidate = torch.where(uniform(*shape) < 0.4, tokens, candidate)
    fixed = (torch.arange(block) < block // 3).expand(shape).contiguous()
    tokens = torch.where((uniform(*shape) < uniform(requests, 1)) & ~fixed, MASK, tokens)
    order = uniform(requests, 2 * block).argsort(1)
    sure = (order + 0.1 + 0.8 * uniform(requests, 2 * block)) / (2 * block)
    return Blocks(tokens, fixed, candidate, *(x.contiguous() for x in sure.split(block, 1)))


def start(blocks: Blocks, device: str) -> BlockState:
    return BlockState.start(blocks.tokens.clone().to(device), MASK, fixed=blocks.fixed.to(device))


def advance(state: BlockState, blocks: Blocks, rule: Rule | RuleTable) -> None:
    """One step of ours. A block without a usable candidate would be a fault of the test."""
    device, error = state.tokens.device, new_error_word(state.tokens.device)
    requests = len(state.tokens)
    noise = Noise(
        torch.arange(requests, device=device),
        torch.zeros(requests, dtype=torch.int32, device=device),
        VOCAB,
    )
    remask_scatter(
        state,
        blocks.candidate.int().to(device),
        blocks.confidence.to(device),
        rule,
        mask_id=MASK,
        eos_id=EOS,
        token_probability=blocks.token_probability.to(device),
        noise=noise,
        error=error,
    )
    assert not error.item()


class Row(NamedTuple):
    """One request's block in plain numbers."""

    tokens: list[int]
    fixed: list[bool]
    candidate: list[int]
    confidence: list[float]
    token_probability: list[float]

    @property
    def masks(self) -> list[int]:
        return [i for i, token in enumerate(self.tokens) if token == MASK]

    def surest(self, count: int | None = None) -> list[int]:
        return sorted(self.masks, key=lambda i: -self.confidence[i])[:count]

    def filled(self, positions: list[int]) -> list[int]:
        """The tokens once `positions` have taken their candidates."""
        pairs = enumerate(zip(self.tokens, self.candidate, strict=True))
        return [new if i in positions else old for i, (old, new) in pairs]


def rows(blocks: Blocks) -> list[Row]:
    columns = zip(*(field.tolist() for field in blocks), strict=True)
    return [Row(*row) for row in columns]


# --- restated engines


@pytest.mark.parametrize("block", BLOCKS)
def test_llada_low_confidence(block: int, place: tuple[str, int]) -> None:
    """ML-GSAI/LLaDA, generate.py: the masks at the start are split over the steps beforehand."""
    device, requests = place
    blocks = random_blocks(requests, block, 0)
    steps = [1 + 7 * i % 6 for i in range(requests)]
    rule = RuleTable.pack([Rule(steps=count) for count in steps], device)
    state = start(blocks, device)
    masks = [len(row.masks) for row in rows(blocks)]
    for n in range(max(steps)):
        fresh = random_blocks(requests, block, 1 + n)
        blocks = fresh._replace(tokens=blocks.tokens, fixed=blocks.fixed)
        advance(state, blocks, rule)
        tokens = []
        for request, row in enumerate(rows(blocks)):
            base, rest = divmod(masks[request], steps[request])
            quota = base + (n < rest) if n < steps[request] else 0
            tokens.append(row.filled(row.surest(quota)))
        assert state.tokens.tolist() == tokens, f"step {n}"
        blocks = blocks._replace(tokens=torch.tensor(tokens))
    assert state.done.all()


def fast_dllm_threshold(row: Row, threshold: float) -> list[int]:
    """NVlabs/Fast-dLLM, get_transfer_index: all masks but those below, and the surest always."""
    ranked = row.surest()
    return ranked[:1] + [i for i in ranked[1:] if not row.confidence[i] < threshold]


def fast_dllm_factor(row: Row, factor: float) -> list[int]:
    """NVlabs/Fast-dLLM, get_transfer_index_dynamic, but for its slip at the last candidate."""
    ranked = row.surest()
    passes = [row.confidence[i] >= 1 - factor / (n + 2) for n, i in enumerate(ranked)]
    first_below = (passes[1:] + [False]).index(False) + 1
    return ranked[:first_below]


def sglang_low_confidence(row: Row, threshold: float) -> list[int]:
    """sgl-project/sglang, low_confidence.py: those above the threshold, or the surest."""
    return [i for i in row.masks if row.confidence[i] > threshold] or row.surest(1)


def sdar_low_confidence_dynamic(row: Row, quota: int) -> list[int]:
    """JetAstra/SDAR, generate.py: those above the threshold if they are `quota`, or the surest."""
    above = [i for i in row.masks if row.confidence[i] > 0.85]
    return above if len(above) >= quota else row.surest(quota)


def entropy_bound(row: Row, bound: float) -> list[int]:
    """sgl-project/sglang, eb_sampling.py: the entropies before each add up to at most the bound."""
    ranked = row.surest()
    before = [math.fsum(-row.confidence[j] for j in ranked[:n]) for n in range(len(ranked))]
    return [i for n, i in enumerate(ranked) if n == 0 or before[n] <= bound]


ONE_STEP = [
    *((Rule(threshold=t), fast_dllm_threshold, t) for t in (0.3, 0.9)),
    *((Rule(factor=f), fast_dllm_factor, f) for f in (0.5, 1.0, 2.3)),
    *((Rule(threshold=t, strict=True), sglang_low_confidence, t) for t in (0.3, 0.9)),
    (Rule(threshold=0.85, strict=True, top_k=3), sdar_low_confidence_dynamic, 3),
    *((Rule(confidence="entropy", entropy_bound=b), entropy_bound, b) for b in (0.02, 0.4)),
]


@pytest.mark.parametrize(
    ("rule", "engine", "setting"),
    [pytest.param(*case, id=f"{case[1].__name__}-{case[2]}") for case in ONE_STEP],
)
@pytest.mark.parametrize("block", BLOCKS)
def test_one_step_commits_what_another_engine_does(
    block: int, rule: Rule, engine: Callable, setting: float, place: tuple[str, int]
) -> None:
    device, requests = place
    for seed in range(2):
        blocks = random_blocks(requests, block, seed)
        if rule.confidence == "entropy":
            blocks = blocks._replace(confidence=blocks.confidence - 1)
        state = start(blocks, device)
        advance(state, blocks, rule)
        assert state.tokens.tolist() == [
            row.filled(engine(row, setting)) if row.masks else row.tokens for row in rows(blocks)
        ]


@pytest.mark.parametrize("block", BLOCKS)
def test_sglang_joint_threshold(block: int, place: tuple[str, int]) -> None:
    """sgl-project/sglang, joint_threshold.py, to the end of every block.

    There one more forward, which changes nothing, finds that the edit steps are used up.
    """
    device, requests = place
    blocks = random_blocks(requests, block, 0)
    rules = [
        Rule(threshold=t, strict=True, edit_threshold=e, edit_steps=n)
        for t, e, n in zip([0.5, 0.8, 0.3], [0.2, 0.7, 0.9], [3, 0, 1], strict=True)
    ]
    rules = [rules[i % 3] for i in range(requests)]
    table, state = RuleTable.pack(rules, device), start(blocks, device)
    finished, edit_steps = [False] * requests, [0] * requests
    for n in range(block + 6):
        fresh = random_blocks(requests, block, 1 + n)
        blocks = fresh._replace(tokens=blocks.tokens, fixed=blocks.fixed)
        advance(state, blocks, table)
        tokens = []
        for request, row in enumerate(rows(blocks)):
            tokens.append(row.tokens)
            if finished[request]:
                continue
            rule, masks = rules[request], row.masks
            take = [i for i in masks if row.confidence[i] > rule.threshold] or row.surest(1)
            if not masks:
                edit_steps[request] += 1
                if edit_steps[request] > rule.edit_steps:
                    finished[request] = True
                    continue
            edits = [
                i
                for i in range(block)
                if i not in masks
                and not row.fixed[i]
                and row.confidence[i] > rule.edit_threshold
                and row.candidate[i] != row.tokens[i]
            ]
            finished[request] = not take and not edits
            tokens[-1] = row.filled(take + edits)
        assert state.tokens.tolist() == tokens, f"step {n}"
        assert all(~state.done.cpu() | (state.masks_left.cpu() == 0))
        blocks = blocks._replace(tokens=torch.tensor(tokens))
        # Ours says so without the further forward.
        ended = [
            over or not row.masks and used >= rule.edit_steps
            for over, used, rule, row in zip(finished, edit_steps, rules, rows(blocks), strict=True)
        ]
        assert state.done.tolist() == ended
        if all(finished):
            break
    assert all(finished)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("block", BLOCKS)
def test_dinfer_remask(block: int, threshold: float, place: tuple[str, int]) -> None:
    """inclusionAI/dInfer, get_transfer_index_threshold_remask.

    There all masks are filled and then the least likely of the filled and the standing tokens
    masked again, fewer than were filled. As many masks are left here; which, is the same wherever
    that limit does not bind. Where it does, a filled mask may stay there for a standing token that
    is less likely, and here none that is below the threshold does.
    """
    device, requests = place
    rule, bound_by_limit = Rule(threshold=threshold, remask_below=threshold), 0
    for seed in range(2):
        blocks = random_blocks(requests, block, seed)
        state = start(blocks, device)
        state.step.fill_(1)  # the first step on a block without masks has a rule of its own
        advance(state, blocks, rule)
        for row, tokens in zip(rows(blocks), state.tokens.tolist(), strict=True):
            masks = row.masks
            likely = {
                i: row.confidence[i] if i in masks else row.token_probability[i]
                for i in range(block)
                if not row.fixed[i]
            }
            low = sorted((i for i in likely if likely[i] < threshold), key=likely.get)
            again = low[: max(min(len(masks) - 1, len(low)), 0)]
            left = [i for i, token in enumerate(tokens) if token == MASK]
            assert len(left) == len(again)
            if len(low) <= len(masks) - 1 or set(low) <= set(masks):
                expected = row.filled(masks)
                assert tokens == [MASK if i in again else t for i, t in enumerate(expected)]
            else:
                bound_by_limit += 1
                assert set(left) <= set(low)
    if block > 1:
        assert 0 < bound_by_limit < 2 * requests


# --- diffusers


@pytest.fixture
def scheduler():
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "BlockRefinementScheduler"):
        pytest.skip("diffusers without BlockRefinementScheduler")
    return diffusers.BlockRefinementScheduler()


def logits_for(blocks: Blocks) -> Tensor:
    """Logits [requests, block, VOCAB] whose argmax and its probability are the candidates."""
    sure = (0.05 + 0.94 * blocks.confidence)[:, :, None]
    others = ((1 - sure) / (VOCAB - 1)).log().expand(-1, -1, VOCAB).clone()
    return others.scatter_(-1, blocks.candidate[:, :, None], sure.log())


@pytest.mark.parametrize(
    ("threshold", "top_k", "edit"),
    [(0.9, 1, 0.5), (0.4, 4, 0.8), (2.0, 3, 0.1), (0.8, 4, None), (0.5, 1, None)],
)
@pytest.mark.parametrize("block", BLOCKS)
def test_diffusers_commits_and_edits(
    block: int, threshold: float, top_k: int, edit: float | None, scheduler, place: tuple[str, int]
) -> None:
    device, requests = place
    blocks = random_blocks(requests, block, 0)
    # A schedule of top_k at every step.
    scheduler.set_timesteps(2, block_length=2 * top_k)
    theirs = scheduler.step(
        logits_for(blocks),
        0,
        blocks.tokens,
        mask_token_id=MASK,
        threshold=threshold,
        editing_threshold=edit,
        prompt_mask=blocks.fixed[0],
    )
    assert torch.equal(theirs.sampled_tokens, blocks.candidate)
    state = start(blocks, device)
    editing = {} if edit is None else {"edit_threshold": edit, "edit_steps": 1}
    rule = Rule(threshold=threshold, strict=True, top_k=top_k, **editing)
    advance(state, blocks._replace(confidence=theirs.sampled_probs), rule)
    # A block without masks, which a rule that edits nothing leaves alone, is an error there.
    alike = (blocks.tokens == MASK).any(1) | (edit is not None)
    written = theirs.transfer_index | theirs.editing_transfer_index
    assert state.tokens[alike].tolist() == theirs.prev_sample[alike].tolist()
    assert state.commit_step.eq(0)[alike].tolist() == written[alike].tolist()
    assert state.step.eq(1).all()


@pytest.mark.parametrize(("block", "steps"), [(32, 5), (31, 4), (5, 9)])
def test_diffusers_budget(block: int, steps: int, scheduler, place: tuple[str, int]) -> None:
    device, _ = place
    scheduler.set_timesteps(steps, block_length=block)
    tokens = torch.full((5, block), MASK)
    state = BlockState.start(tokens.clone().to(device), MASK)
    for step in range(steps):
        blocks = random_blocks(5, block, step)
        theirs = scheduler.step(logits_for(blocks), step, tokens, mask_token_id=MASK, threshold=2.0)
        advance(state, blocks._replace(confidence=theirs.sampled_probs), Rule(steps=steps))
        tokens = theirs.prev_sample
        assert state.tokens.tolist() == tokens.tolist(), f"step {step}"
    assert state.done.all()


@pytest.mark.parametrize("step", [1, 4, 11])
@pytest.mark.parametrize("edit", [None, 0.6])
@pytest.mark.parametrize("block", [6, 33])
def test_diffusers_uniform_corruption(
    block: int, edit: float | None, step: int, scheduler, place: tuple[str, int]
) -> None:
    """Without a mask token; what a step owes of its schedule differs from request to request."""
    device, requests = place
    blocks = random_blocks(requests, block, step)
    decided = blocks.tokens != MASK
    tokens = torch.where(decided, blocks.tokens, VOCAB - 1)
    scheduler.set_timesteps(block)
    scheduler._committed = decided.clone()
    theirs = scheduler.step(logits_for(blocks), step, tokens, threshold=0.8, editing_threshold=edit)

    owed = (step + 1 - decided.sum(1)).clamp(min=1).tolist()
    table = RuleTable.pack(
        [
            Rule(threshold=0.8, strict=True, top_k=count, renoise=True, edit_threshold=edit)
            for count in owed
        ],
        device,
    )
    nothing = torch.zeros_like(decided, device=device)
    state = BlockState.start(
        tokens.clone().to(device), MASK, undecided=~decided.to(device), fixed=nothing
    )
    state.commit_step.copy_(torch.where(decided, 0, -1))
    state.step.fill_(step)
    advance(state, blocks._replace(confidence=theirs.sampled_probs), table)

    # Ahead of its schedule, a step there may commit nothing; here it always commits the surest.
    # Rules that edit do so there also when nothing is undecided, which here takes edit steps.
    alike = theirs.transfer_index.any(1)
    assert alike.sum() > requests / 6
    written = theirs.transfer_index | theirs.editing_transfer_index
    ours = state.commit_step.cpu() == step
    assert ours[alike].tolist() == written[alike].tolist()
    settled = (decided | theirs.transfer_index)[alike]
    assert torch.equal(state.commit_step.cpu()[alike] >= 0, settled)
    assert torch.equal(state.tokens.cpu()[alike][settled], theirs.prev_sample[alike][settled])


# --- transformers


@pytest.mark.parametrize("bound", [0.1, 1.5])
@pytest.mark.parametrize("block", BLOCKS)
def test_diffusion_gemma_entropy_bound(block: int, bound: float, place: tuple[str, int]) -> None:
    module = pytest.importorskip("transformers.models.diffusion_gemma.generation_diffusion_gemma")
    device, requests = place
    sampler = module.EntropyBoundSampler(
        module.EntropyBoundSamplerConfig(bound), block, VOCAB, max_denoising_steps=9
    )
    rule = Rule(confidence="entropy", entropy_bound=bound, renoise=True, revise=True, steps=9)
    canvas = random_blocks(requests, block, 0).candidate
    everything = torch.ones(canvas.shape, dtype=torch.bool, device=device)
    state = BlockState.start(
        canvas.clone().to(device), MASK, undecided=everything, fixed=~everything
    )
    for step in range(3):
        blocks = random_blocks(requests, block, step)
        generator = torch.Generator().manual_seed(step)
        sharpness = 20 * torch.rand(requests, block, 1, generator=generator)
        logits = sharpness * torch.randn(requests, block, VOCAB, generator=generator)
        accepted = sampler.accept_canvas(canvas, blocks.candidate, logits, step)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        active = ~state.done.cpu()
        advance(state, blocks._replace(confidence=-entropy), rule)
        mask = sampler.accepted_token_mask[active]
        assert (state.commit_step.cpu() == step)[active].tolist() == mask.tolist()
        assert torch.equal(state.tokens.cpu()[active][mask], accepted[active][mask])
        # What is not accepted is drawn anew there too.
        assert torch.equal(state.masks_left.cpu()[active], (~mask).sum(1).int())
        assert torch.equal(state.done.cpu()[active], mask.all(1))
