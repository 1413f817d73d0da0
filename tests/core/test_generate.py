"""generate: bad requests, limits, callbacks and faults met on the device."""

import functools
import re
from pathlib import Path

import pytest
import torch
from caches import cache_after

from dlm_core import Generation, Model, StepEvent, generate, load_model
from dlm_kernels import DeviceError, Rule

# Tokens of this run are in the golden cases; none of its three blocks of 8 holds an EOS.
PROMPT = [59, 62, 65, 2, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49, 53, 57, 61, 65, 2, 28, 31, 34]
PROMPT += [37, 40, 43, 46, 49, 52, 55, 58, 61, 64, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]


diffuse = functools.partial(generate, mode="diffusion")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "beam"}, "mode is 'beam'; it must be one of autoregressive, diffusion"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [1, 67]}, "prompt holds 67; ids must be in [0, 67)"),
        ({"prompt": [-1]}, "prompt holds -1"),
        ({"prompt": [1, 3]}, "prompt holds 3, the mask id"),
        ({"prompt": [1.5]}, "prompt is [1.5]"),
        ({"prompt": 7}, "prompt is 7"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
        ({"max_new_tokens": 768}, "max_new_tokens is 768; behind a prompt of 2 tokens"),
        ({"max_new_tokens": 761}, "takes 770 positions, and the model has 768"),
        ({"block_length": 1}, "block_length is 1"),
        ({"block_length": 257}, "block_length is 257"),
        ({"block_length": True}, "block_length is True"),
        ({"threshold": 1.1}, "threshold is 1.1"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": "0.9"}, "threshold is '0.9'"),
        ({"rule": "nemo"}, "rule is 'nemo'; it must be one of nemotron, llada"),
        ({"rule": 0.9}, "rule is 0.9; it must be a Rule or the name of one"),
        ({"rule": Rule(threshold=1.5)}, "rule.threshold is 1.5; it must be in [0, 1]"),
        ({"rule": Rule(edit_threshold=-0.5, edit_steps=1)}, "rule.edit_threshold is -0.5; it"),
        ({"rule": Rule(remask_below=2.0)}, "rule.remask_below is 2.0; it must be in [0, 1]"),
        ({"rule": "llada", "threshold": 0.9}, "rule is llada beside threshold=0.9"),
        ({"numerics": "exact"}, "numerics is 'exact'; it must be one of batch_invariant, fast"),
        ({"sampling": {"temperature": 1}}, "sampling is {'temperature': 1}; it must be a Sampling"),
        ({"mode": "quadratic_spec", "block_length": 17}, "block_length is 17"),
        ({"mode": "quadratic_spec", "lora": True}, "lora is True; it needs mode='linear_spec'"),
        ({"mode": "quadratic_spec", "max_new_tokens": 752}, "takes 769 positions"),
        ({"mode": "linear_spec", "rule": "llada"}, "rule is 'llada'; it needs mode='diffusion'"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 8}, "steps is 8; it must be in [1, 7]"),
        ({"steps": 4, "threshold": 0.9}, "threshold is 0.9 beside steps=4"),
        ({"mode": "autoregressive", "steps": 4}, "steps is 4; it needs mode='diffusion'"),
        ({"mode": "autoregressive", "threshold": 0.0}, "threshold is 0.0; it needs"),
        ({"mode": "autoregressive", "block_length": 8}, "block_length is 8; it needs"),
        ({"on_step": 3}, "on_step is 3; it must be callable"),
        ({"lora": False}, "lora is False; it needs mode='linear_spec'"),
        ({"mode": "linear_spec", "steps": 4}, "steps is 4; it needs mode='diffusion'"),
        ({"mode": "linear_spec", "max_new_tokens": 761}, "takes 769 positions"),
    ],
)
def test_bad_argument_is_named_before_anything_runs(
    change: dict, message: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "forward", lambda *_, **__: pytest.fail("a forward ran"))
    request = {"prompt": [1, 4], "max_new_tokens": 8, "mode": "diffusion"} | change
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        generate(model, **request)


def test_longest_request_that_fits_runs(model: Model) -> None:
    assert generate(model, [4, 5], 766).tokens
    assert generate(model, [4] * 760, 2, "linear_spec").tokens
    assert generate(model, [4] * 767, 1, "linear_spec").tokens
    assert generate(model, [4] * 752, 1, "quadratic_spec", block_length=8).tokens
    assert diffuse(model, [4] * 760, 8).tokens


@pytest.mark.parametrize("max_new_tokens", [1, 7, 8, 9, 17])
def test_last_block_is_whole_and_its_tokens_are_cut(model: Model, max_new_tokens: int) -> None:
    whole = diffuse(model, PROMPT, 24, steps=3)
    cut = diffuse(model, PROMPT, max_new_tokens, steps=3)
    blocks = -(-max_new_tokens // 8)
    assert cut.tokens == whole.tokens[:max_new_tokens]
    assert cut.committed == whole.committed[: 3 * blocks]
    commits = {"commit": blocks - 1} if blocks > 1 else {}
    assert cut.forwards == {"prefill": 1, "denoise": 3 * blocks} | commits


def test_threshold_is_the_default_rule_and_commits_all_or_one(model: Model) -> None:
    assert diffuse(model, PROMPT, 24) == diffuse(model, PROMPT, 24, threshold=0.9, block_length=8)
    for threshold, denoise in ((0, 3), (1, 21)):
        assert diffuse(model, PROMPT, 24, threshold=threshold).forwards["denoise"] == denoise


@pytest.mark.parametrize(("length", "chunks"), [(256, 1), (257, 2), (600, 3)])
def test_long_prompt_is_prefilled_in_chunks(model: Model, length: int, chunks: int) -> None:
    prompt = [4 + i % 60 for i in range(length)]
    generation = generate(model, prompt, 1)
    assert generation.forwards == {"prefill": chunks}

    cache = cache_after(model, torch.tensor([prompt[:100]]), capacity=length)
    for chunk in torch.tensor([prompt[100:]], device=model.device).split(100, dim=1):
        hidden = model(chunk, cache, causal=True)
        cache.advance(chunk.shape[1])
    logits = model.logits(hidden[0, -1])
    logits[model.config.mask_token_id] = -torch.inf
    assert generation.tokens == [int(logits.argmax())]


def test_prompt_may_be_a_tensor(model: Model) -> None:
    assert generate(model, torch.tensor(PROMPT), 4) == generate(model, PROMPT, 4)


def test_on_step_sees_the_block_fill(model: Model) -> None:
    events: list[StepEvent] = []
    generation = diffuse(model, PROMPT, 21, on_step=events.append)
    assert [event.committed for event in events] == generation.committed
    assert [event.confidences for event in events] == generation.confidences
    assert not any(event.edited or event.remasked for event in events)
    assert [event.block for event in events] == sorted(event.block for event in events)
    blocks = {event.block: event.tokens for event in events}
    assert sum(blocks.values(), [])[:21] == generation.tokens
    for event in events:
        mask_id = model.config.mask_token_id
        assert event.undecided == [i for i, id_ in enumerate(event.tokens) if id_ == mask_id]
        masks = len(event.undecided)
        earlier = [e for e in events if e.block == event.block and e.step <= event.step]
        assert masks == 7 - sum(len(e.committed) for e in earlier)
        assert event.step == len(earlier) - 1


@pytest.mark.parametrize(
    ("forwards", "tpf"),
    [
        ({"prefill": 1}, None),
        ({"prefill": 2, "decode": 8}, 1.0),
        ({"prefill": 1, "denoise": 3, "commit": 1}, 2.0),
    ],
)
def test_tpf_counts_every_forward_but_the_prefill(forwards: dict, tpf: float | None) -> None:
    assert Generation(list(range(8)), forwards).tpf == tpf


@pytest.mark.parametrize("mode", ["autoregressive", "diffusion"])
def test_nan_on_the_device_is_raised(golden: Path, device: str, mode: str) -> None:
    model = load_model(golden / "tiny-a", device=device)
    model.diffusion_head.weight[5, 0] = torch.nan
    with pytest.raises(DeviceError, match="NaN"):
        generate(model, PROMPT, 8, mode=mode)


@pytest.mark.parametrize(
    ("mode", "in_causal", "message"),
    [
        ("autoregressive", True, "no token to choose"),
        ("diffusion", True, "no token to choose"),
        ("diffusion", False, "no position with a usable candidate"),
    ],
)
def test_logits_with_nothing_to_choose_are_raised(
    mode: str, in_causal: bool, message: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states (inf, 0, 0, ...): every logit is inf or -inf, and several are inf."""
    forward = Model.forward

    def infinite(self: Model, *args, causal: bool, **options) -> torch.Tensor:
        hidden = forward(self, *args, causal=causal, **options)
        if in_causal or not causal:
            hidden.zero_()[..., 0] = torch.inf
        return hidden

    monkeypatch.setattr(Model, "forward", infinite)
    with pytest.raises(DeviceError, match=message):
        generate(model, PROMPT, 8, mode=mode)
