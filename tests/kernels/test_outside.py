"""Choice of positions against diffusers, an implementation that is not ours."""

import pytest
import torch

from dlm_kernels import BlockState, Rule, remask_scatter

diffusers = pytest.importorskip("diffusers")
if not hasattr(diffusers, "BlockRefinementScheduler"):
    pytest.skip("diffusers without BlockRefinementScheduler", allow_module_level=True)

MASK, EOS = 100, 11
NEVER = 2.0


class GivenConfidences(diffusers.BlockRefinementScheduler):
    """Takes (candidate, confidence) for logits, so that both sides choose from the same floats."""

    @staticmethod
    def _sample_from_logits(logits, **_):
        return logits


def random_blocks(
    requests: int, block: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Partly masked blocks, candidates, and confidences without ties.

    Ties would be free choices of topk there, and a confidence equal to the threshold passes here
    (>=) but not there (>); neither occurs.
    """
    generator = torch.Generator().manual_seed(seed)
    filled = torch.rand(requests, 1, generator=generator)
    masked = torch.rand(requests, block, generator=generator) >= filled
    # A block without masks is done here and an error of the caller there.
    masked[:, 0] |= ~masked.any(1)
    candidate = torch.randint(12, 90, (requests, block), generator=generator)
    tokens = torch.where(masked, MASK, candidate.flip(1))
    order = torch.rand(requests, block, generator=generator).argsort(1)
    confidence = (order + 0.25 + 0.5 * torch.rand(requests, 1, generator=generator)) / block
    assert all(len(row.unique()) == block for row in confidence)
    return tokens, candidate, confidence


@pytest.mark.parametrize("block", [1, 2, 7, 32, 33])
@pytest.mark.parametrize(
    ("threshold", "top_k"),
    [
        pytest.param(0.9, 1, id="threshold"),
        pytest.param(0.5, 1, id="low-threshold"),
        pytest.param(NEVER, 1, id="best-one"),
        pytest.param(NEVER, 4, id="top-k"),
        pytest.param(0.8, 4, id="all-that-pass-or-else-top-k"),
    ],
)
def test_one_step_chooses_what_diffusers_chooses(
    block: int, threshold: float, top_k: int, backend: str, op_device: str
) -> None:
    interpreted = backend == "triton" and op_device == "cpu"
    requests = 30 if interpreted else 300
    tokens, candidate, confidence = random_blocks(requests, block, seed=block)
    assert not confidence.eq(threshold).any()
    scheduler = GivenConfidences()
    # A schedule of top_k at every step.
    scheduler.set_timesteps(2, block_length=2 * top_k)
    theirs = scheduler.step(
        (candidate, confidence), 0, tokens, mask_token_id=MASK, threshold=threshold
    )

    state = BlockState.start(tokens.to(op_device), MASK)
    remask_scatter(
        state,
        candidate.int().to(op_device),
        confidence.to(op_device),
        Rule(threshold=None if threshold == NEVER else threshold, top_k=top_k),
        mask_id=MASK,
        eos_id=EOS,
    )
    assert state.commit_step.eq(0).tolist() == theirs.transfer_index.tolist()
    assert state.tokens.tolist() == theirs.prev_sample.tolist()


@pytest.mark.parametrize(("block", "steps"), [(32, 1), (32, 5), (32, 32), (31, 4), (7, 3), (5, 9)])
def test_a_budget_commits_what_diffusers_schedule_commits(
    block: int, steps: int, backend: str, op_device: str
) -> None:
    requests = 5
    scheduler = GivenConfidences()
    scheduler.set_timesteps(steps, block_length=block)
    tokens = torch.full((requests, block), MASK)
    state = BlockState.start(tokens.clone().to(op_device), MASK)
    for step in range(steps):
        _, candidate, confidence = random_blocks(requests, block, seed=step)
        remask_scatter(
            state,
            candidate.int().to(op_device),
            confidence.to(op_device),
            Rule(steps=steps),
            mask_id=MASK,
            eos_id=EOS,
        )
        tokens = scheduler.step(
            (candidate, confidence), step, tokens, mask_token_id=MASK, threshold=NEVER
        ).prev_sample
        assert state.tokens.tolist() == tokens.tolist(), f"step {step}"
    assert state.done.all()
