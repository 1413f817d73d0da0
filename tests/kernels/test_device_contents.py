"""Device contents that only DLM_CHECK=1 reads: each fault names what it found."""

from collections.abc import Callable

import pytest
import torch
from valid_arguments import (
    CAUSAL,
    I32,
    attention_arguments,
    confidence_arguments,
    expect,
    head_arguments,
    pages_of,
    remask_arguments,
    rope_arguments,
    rope_pages,
    state_with,
    two_shards,
)

from dlm_kernels import (
    Rule,
    block_attention,
    confidence,
    lm_head_confidence,
    merge_partials,
    remask_scatter,
    rope_kv_write,
)


@pytest.mark.parametrize(
    ("call", "arguments", "change", "message"),
    [
        pytest.param(
            confidence,
            confidence_arguments,
            {"banned": torch.tensor([1, 8], dtype=I32)},
            r"banned holds 8; ids must be in \[0, 8\)",
            id="banned-id-past-the-vocabulary",
        ),
        pytest.param(
            confidence,
            confidence_arguments,
            {"banned": torch.tensor([-1], dtype=I32)},
            "banned holds -1",
            id="banned-id-negative",
        ),
        pytest.param(
            lm_head_confidence,
            head_arguments,
            {"banned": torch.tensor([1, 8], dtype=I32)},
            r"banned holds 8; ids must be in \[0, 8\)",
            id="banned-id-past-the-head",
        ),
        pytest.param(
            merge_partials,
            two_shards,
            {"banned": torch.tensor([7, 8], dtype=I32)},
            r"banned holds 8; ids must be in \[0, 8\)",
            id="banned-id-past-the-shards",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            {"context_lens": torch.tensor([0, 21, 3], dtype=I32)},
            r"context_lens holds 21; lengths must be in \[0, 20\]",
            id="length-past-the-cache",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            CAUSAL | {"context_lens": torch.tensor([0, 17, 3], dtype=I32)},
            r"context_lens holds 17; lengths must be in \[0, 16\]",
            id="causal-length-past-the-cache",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            {"context_lens": torch.tensor([6, 0, 0], dtype=I32), "max_context": 5},
            "context_lens holds 6",
            id="length-past-max-context",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            {"context_lens": torch.tensor([0, 0, -1], dtype=I32)},
            "context_lens holds -1",
            id="length-negative",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            pages_of(
                block_table=torch.tensor([[0, 1], [2, 7], [3, -1]], dtype=I32),
                context_lens=torch.tensor([16, 17, 16], dtype=I32),
            ),
            r"block_table holds 7; pages must be in \[0, 7\)",
            id="page-past-the-last",
        ),
        pytest.param(
            block_attention,
            attention_arguments,
            pages_of(
                block_table=torch.tensor([[0, 1], [2, 7], [3, -1]], dtype=I32),
                context_lens=torch.tensor([16, 16, 14], dtype=I32),
                draft_groups=(1, 2),
            ),
            "block_table holds 7",
            id="page-of-a-drafts-slot-0",
        ),
        pytest.param(
            rope_kv_write,
            rope_arguments,
            {"context_lens": torch.tensor([0, 17, 3], dtype=I32)},
            r"context_lens holds 17; lengths must be in \[0, 16\]",
            id="length-that-leaves-a-block-no-room",
        ),
        pytest.param(
            rope_kv_write,
            rope_arguments,
            {"context_lens": torch.tensor([0, 18, 3], dtype=I32), "draft_groups": (1, 2)},
            r"context_lens holds 18; lengths must be in \[0, 17\]",
            id="length-that-leaves-drafts-no-room",
        ),
        pytest.param(
            rope_kv_write,
            rope_arguments,
            rope_pages(
                block_table=torch.tensor([[0, -1], [-1, 7], [3, 4]], dtype=I32),
                context_lens=torch.tensor([12, 16, 0], dtype=I32),
            ),
            r"block_table holds 7; pages must be in \[0, 7\)",
            id="page-that-a-block-is-written-to",
        ),
        pytest.param(
            remask_scatter,
            remask_arguments,
            state_with(step=torch.tensor([0, 3], dtype=I32)) | {"rule": Rule(steps=3)},
            r"state.step holds \[0, 3\]; that of request 1 .*steps=3",
            id="step-past-the-budget",
        ),
        pytest.param(
            remask_scatter,
            remask_arguments,
            state_with(step=torch.tensor([-1, 0], dtype=I32)) | {"rule": Rule(steps=3)},
            "state.step holds",
            id="step-negative",
        ),
    ],
)
def test_contents_are_checked_on_request(
    call: Callable,
    arguments: Callable[[], dict],
    change: dict,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faulty = arguments() | change
    monkeypatch.setenv("DLM_CHECK", "1")
    call(**arguments())
    expect(call, faulty, ValueError, message)
    monkeypatch.setenv("DLM_CHECK", "0")
    call(**faulty)


def test_steps_outside_the_budget_are_right_where_nothing_is_undecided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DLM_CHECK", "1")
    step = torch.tensor([0, 3], dtype=I32)
    done = state_with(step=step.clone(), done=torch.tensor([False, True]))
    remask_scatter(**(remask_arguments() | done | {"rule": Rule(steps=3)}))
    editing = state_with(step=step.clone(), masks_left=torch.tensor([4, 0], dtype=I32))
    rule = Rule(steps=3, edit_threshold=0.5, edit_steps=9)
    remask_scatter(**(remask_arguments() | editing | {"rule": rule}))


def test_table_entries_behind_the_visible_keys_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DLM_CHECK", "1")
    arguments = attention_arguments() | pages_of(
        block_table=torch.tensor([[-1, -1], [2, 7], [3, -1]], dtype=I32),
        context_lens=torch.tensor([0, 16, 12], dtype=I32),
    )
    block_attention(**arguments)
    with pytest.raises(ValueError, match="block_table holds -1"):
        block_attention(**(arguments | CAUSAL))
