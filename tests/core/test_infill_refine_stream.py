"""infill, refine and stream: what is given stays, what is decided comes at once."""

import re
from dataclasses import replace

import pytest
import torch
from caches import cache_after

from dlm_core import Model, Sampling, StepEvent, generate, infill, refine, stream
from dlm_kernels import Rule
from dlm_kernels.rules import RULES

BEFORE, AFTER = [8, 11, 14, 17, 20], [32, 35, 38, 41, 2]
SHIFTED = replace(RULES["dream"], remask_below=0.5)
PROMPT = [59, 62, 65, 2, 13, 17, 21, 25, 29, 33]


# --- infill


def test_a_gap_holds_no_eos(model: Model) -> None:
    """Where the text alone would end, a gap goes on, also where it is seeded for a shift."""
    before = next(
        prompt
        for prompt in ([4 + 3 * i for i in range(n)] for n in range(15, 22))
        if generate(model, prompt, 1).tokens == [model.config.eos_token_id]
    )
    for rule in ("nemotron", "dream"):
        result = infill(model, before, 3, AFTER, rule=rule)
        assert len(result.tokens) == 3 and model.config.eos_token_id not in result.tokens


@pytest.mark.parametrize("rule", RULES)
def test_infill_fills_the_gap_and_changes_nothing_else(rule: str, model: Model) -> None:
    events: list[StepEvent] = []
    result = infill(model, BEFORE, 3, AFTER, rule=rule, on_step=events.append)
    assert len(result.tokens) == 3
    assert not {2, 3} & set(result.tokens), "an EOS or a mask in the gap"
    assert all(event.tokens[3:] == AFTER for event in events)
    assert all(position < 3 for event in events for position in event.committed)
    assert result.forwards == {"prefill": 1} | ({"denoise": len(events)} if events else {})


def test_infill_sees_what_follows_the_gap(model: Model) -> None:
    """Against one forward in which the gap and what follows it are one bidirectional block."""
    rule = Rule(threshold=0.0)
    for after in (AFTER, [60, 62, 64], []):
        result = infill(model, BEFORE, 4, after, rule=rule)
        assert result.forwards == {"prefill": 1, "denoise": 1}
        cache = cache_after(model, torch.tensor([BEFORE]))
        block = torch.tensor([[3, 3, 3, 3, *after]], device=model.device)
        logits = model.logits(model(block, cache, causal=False))[0, :4]
        logits[:, [2, 3]] = -torch.inf
        assert result.tokens == logits.argmax(-1).tolist()
    assert infill(model, BEFORE, 4, AFTER) != infill(model, BEFORE, 4, [60, 62, 64])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"before": []}, "before is empty"),
        ({"before": [3]}, "before holds 3, the mask id"),
        ({"after": [67]}, "after holds 67; ids must be in [0, 67)"),
        ({"length": 0}, "length is 0"),
        ({"length": 257}, "length is 257"),
        ({"length": 252}, "after holds 5 tokens; "),
        ({"before": [4] * 761}, "after ends at position 769; the model has 768"),
        ({"rule": "nemo"}, "rule is 'nemo'; it must be one of nemotron, llada"),
        ({"rule": "llada", "steps": 2}, "rule is llada beside steps=2"),
        ({"numerics": "loose"}, "numerics is 'loose'"),
        ({"sampling": 0.7}, "sampling is 0.7; it must be a Sampling"),
    ],
)
def test_bad_infill_is_named(change: dict, message: str, model: Model) -> None:
    request = {"before": BEFORE, "length": 3, "after": AFTER} | change
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        infill(model, **request)


# --- refine


def test_refine_keeps_a_draft_that_the_model_agrees_with(model: Model) -> None:
    """No candidate can be surer than 1, and no probability below 0. An EOS stops nothing."""
    draft, events = [37, 41, 45, 49, 5, 6, 7, 8, 2, 9], []
    result = refine(model, PROMPT, draft, rule=Rule(edit_threshold=1.0, edit_steps=4),
                    on_step=events.append)  # fmt: skip
    assert sum((event.tokens for event in events), []) == draft
    assert result.tokens == draft[:9]
    assert result.forwards == {"prefill": 1, "denoise": 2, "commit": 1}
    kept = refine(model, PROMPT, draft, rule=Rule(remask_below=0.0, edit_threshold=None))
    assert kept.tokens == draft[:9]


def test_refine_mends_a_draft(model: Model) -> None:
    """Wrong tokens in a run that the model knows are edited, and the steps are bounded."""
    right = generate(model, PROMPT, 16).tokens[:8]
    wrong = list(right)
    wrong[3] = 5
    events: list[StepEvent] = []
    rule = Rule(edit_threshold=0.3, edit_steps=6)
    result = refine(model, PROMPT, wrong, rule=rule, on_step=events.append)
    assert result.tokens != wrong
    assert 1 <= result.forwards["denoise"] <= 6
    assert events[0].committed, "the first step edited nothing"
    assert 1 <= len(result.tokens) <= 8  # an EOS that came in cuts it


def test_refine_masks_again_what_it_doubts(model: Model) -> None:
    draft = [5, 60, 7, 33, 12, 50, 21, 9]
    events: list[StepEvent] = []
    rule = Rule(edit_threshold=0.5, edit_steps=8, remask_below=0.2, top_k=2)
    result = refine(model, PROMPT, draft, rule=rule, on_step=events.append)
    assert result.tokens != draft and 3 not in result.tokens
    assert any(event.remasked for event in events) and any(event.edited for event in events)
    before = draft
    for event in events:
        after, places = event.tokens, range(len(draft))
        assert event.undecided == [i for i in places if after[i] == 3]
        assert event.remasked == [i for i in places if after[i] == 3 != before[i]]
        assert event.edited == [
            i for i in places if 3 not in (after[i], before[i]) and after[i] != before[i]
        ]
        assert event.committed == [i for i in places if after[i] not in (3, before[i])]
        before = after


def test_events_tell_what_random_ids_hide(model: Model) -> None:
    """Nothing is masked; each step decides anew, and what it does not accept is undecided again."""
    events: list[StepEvent] = []
    generate(model, PROMPT, 8, "diffusion", rule="diffusion_gemma", on_step=events.append)
    accepted: list[int] = []
    for event in events:
        assert sorted(event.committed + event.undecided) == list(range(8))
        assert event.remasked == [i for i in accepted if i in event.undecided]
        assert set(event.edited) <= set(accepted) & set(event.committed)
        accepted = event.committed
    assert any(event.remasked for event in events)


@pytest.mark.parametrize(
    ("prompt", "draft", "options", "message"),
    [
        (PROMPT, [4, 5], {"rule": "nemotron"}, "rule is 'nemotron'; to revise a draft it must"),
        (PROMPT, [4, 5], {"rule": SHIFTED}, "to revise a draft it must have logit_shift=0"),
        (PROMPT, [], {}, "draft is empty"),
        ([4] * 700, [5] * 69, {}, "draft ends at position 769"),
    ],
)
def test_bad_refine_is_named(
    prompt: list[int], draft: list[int], options: dict, message: str, model: Model
) -> None:
    with pytest.raises(ValueError, match=message):
        refine(model, prompt, draft, **options)


# --- stream

MODES = [
    ("autoregressive", {}),
    ("diffusion", {"threshold": 0.9}),
    ("diffusion", {"rule": "llada2"}),
    ("diffusion", {"rule": "diffusion_gemma"}),
    ("diffusion", {"steps": 2, "sampling": Sampling(temperature=1.0, seed=5)}),
    ("linear_spec", {}),
    ("quadratic_spec", {}),
]


@pytest.mark.parametrize(("mode", "options"), MODES)
def test_runs_add_up_to_the_generation(mode: str, options: dict, model: Model) -> None:
    runs = list(stream(model, PROMPT, 20, mode, **options))
    assert all(runs)
    assert sum(runs, []) == generate(model, PROMPT, 20, mode, **options).tokens
    assert len(runs) > 1 or len(runs[0]) <= model.config.block_size


def test_runs_come_as_they_are_decided(model: Model) -> None:
    """Each step's run ends before the first mask that is left."""
    seen: list[int] = []
    mask = model.config.mask_token_id
    blocks: dict[int, list[int]] = {}
    for each in stream(model, PROMPT, 24, "diffusion", threshold=0.9, events=True):
        if isinstance(each, StepEvent):
            blocks[each.block] = each.tokens
            continue
        seen += each
        decided = sum(blocks.values(), [])
        decided = decided[: decided.index(mask)] if mask in decided else decided
        # An EOS where the next block would begin has no step of its own.
        assert seen in (decided[:24], [*decided, model.config.eos_token_id])
    assert len(seen) == 24 or seen[-1] == model.config.eos_token_id


def test_arguments_are_checked_before_the_first_run(model: Model) -> None:
    with pytest.raises(ValueError, match="mode is 'beam'"):
        stream(model, PROMPT, 8, "beam")
    with pytest.raises(ValueError, match="events is True; it needs mode='diffusion'"):
        stream(model, PROMPT, 8, events=True)
    with pytest.raises(ValueError, match="on_step is .* it needs mode='diffusion'"):
        generate(model, PROMPT, 8, on_step=print)
