"""Checks what a user asks for, and makes the request of it."""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import fields

from dlm_kernels import Rule
from dlm_kernels.rules import rule_named
from dlm_kernels.validate import MAX_BLOCK, NUMERICS, check_bool, check_int, check_number

from ..config import ModelConfig
from ..model import Model
from .autoregressive import Autoregressive
from .diffusion import Block, Diffusion
from .request import Mode, Request
from .sampling import Sampling
from .self_speculation import MAX_K, LinearSpec, QuadraticSpec

# Each mode with the arguments that belong to it alone.
MODES = {
    "autoregressive": (),
    "diffusion": ("block_length", "rule", "threshold", "steps", "events"),
    "linear_spec": ("block_length", "lora"),
    "quadratic_spec": ("block_length",),
}
DEFAULT_RULE = "nemotron"
DEFAULT_REFINE_RULE = "llada2"
DEFAULT_K = 16


def new_request(
    model: Model,
    prompt: Sequence[int],
    max_new_tokens: int,
    mode: str = "autoregressive",
    *,
    block_length: int | None = None,
    rule: Rule | str | None = None,
    threshold: float | None = None,
    steps: int | None = None,
    lora: bool | None = None,
    sampling: Sampling | None = None,
    events: bool | None = None,
) -> Request:
    """A request to generate behind a prompt; arguments and errors are those of `generate`.

    events: diffusion: collect a StepEvent a step in `Request.events`.
    """
    check_model(model)
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(
            f"mode is {mode!r}; it must be one of {', '.join(MODES)}; infill and refine are"
            " functions of their own"
        )
    config = model.config
    ids = checked_ids("prompt", prompt, config)
    check_int("max_new_tokens", max_new_tokens, 1, config.max_position_embeddings)
    given = {
        "block_length": block_length,
        "rule": rule,
        "threshold": threshold,
        "steps": steps,
        "lora": lora,
        "events": events,
    }
    for name, value in given.items():
        if value is not None and name not in MODES[mode]:
            modes = " or ".join(repr(m) for m, names in MODES.items() if name in names)
            raise ValueError(f"{name} is {value!r}; it needs mode={modes}")
    sampling = checked_sampling(sampling)

    n_prompt = len(ids)

    def fits(new: int) -> int:
        """The positions that the request takes, if the model has them."""
        if n_prompt + new > config.max_position_embeddings:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}; behind a prompt of {n_prompt} tokens that"
                f" takes {n_prompt + new} positions, and the model has"
                f" {config.max_position_embeddings}"
            )
        return n_prompt + new

    way: Mode
    if mode == "autoregressive":
        way = Autoregressive(fits(max_new_tokens))
    elif mode == "quadratic_spec":
        k = min(config.block_size, DEFAULT_K) if block_length is None else block_length
        check_int("block_length", k, 2, MAX_K)
        fits(max_new_tokens - 1 + 2 * k)  # the masks of the last group
        way = QuadraticSpec(k, n_prompt + max_new_tokens - 1 + k)
    else:
        block_length = config.block_size if block_length is None else block_length
        check_int("block_length", block_length, 2, MAX_BLOCK)
        if mode == "linear_spec":
            # The last cycle begins one token short of the limit, on a context without its seed.
            cycle = max_new_tokens - 2 + block_length if max_new_tokens > 1 else 0
            way = LinearSpec(block_length, checked_lora(lora, model), fits(cycle))
        else:
            chosen = checked_rule(rule, threshold, steps, block_length)
            whole_blocks = math.ceil(max_new_tokens / block_length) * block_length
            empty = Block([None] * block_length, block_length)
            way = Diffusion(
                chosen,
                itertools.repeat(empty),
                fits(whole_blocks),
                seeded=chosen.seed_first_token,
                keep_events=bool(events),
            )
    return Request(ids, max_new_tokens, config.eos_token_id, way, sampling)


def infill_request(
    model: Model,
    before: Sequence[int],
    length: int,
    after: Sequence[int],
    *,
    rule: Rule | str | None = None,
    threshold: float | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    events: bool = False,
) -> Request:
    """A request to fill a gap; arguments and errors are those of `infill`."""
    check_model(model)
    config = model.config
    ids = checked_ids("before", before, config)
    behind = checked_ids("after", after, config, may_be_empty=True)
    check_int("length", length, 1, MAX_BLOCK)
    if length + len(behind) > MAX_BLOCK:
        raise ValueError(
            f"after holds {len(behind)} tokens; behind a gap of {length} at most"
            f" {MAX_BLOCK - length} fit, for both are one block of {MAX_BLOCK}"
        )
    check_positions(config, "after", len(ids) + length + len(behind))
    chosen = checked_rule(rule, threshold, steps, length + 1)
    way = Diffusion(
        chosen,
        iter([Block([None] * length + behind, length)]),
        len(ids) + length + len(behind),
        # A seed knows nothing of what follows the gap; a shift leaves its place no other logits.
        seeded=chosen.logit_shift == 1,
        eos="banned",
        keep_events=events,
    )
    return Request(ids, length, config.eos_token_id, way, checked_sampling(sampling))


def refine_request(
    model: Model,
    prompt: Sequence[int],
    draft: Sequence[int],
    *,
    rule: Rule | str = DEFAULT_REFINE_RULE,
    block_length: int | None = None,
    sampling: Sampling | None = None,
    events: bool = False,
) -> Request:
    """A request to revise a draft; arguments and errors are those of `refine`."""
    check_model(model)
    config = model.config
    ids, drafted = checked_ids("prompt", prompt, config), checked_ids("draft", draft, config)
    check_positions(config, "draft", len(ids) + len(drafted))
    block_length = config.block_size if block_length is None else block_length
    check_int("block_length", block_length, 1, MAX_BLOCK)
    chosen = checked_rule(rule, None, None, block_length)
    if chosen.edit_steps == 0 and chosen.remask_below is None:
        raise ValueError(
            f"rule is {_short(rule)}; to revise a draft it must have edit_steps or remask_below, as"
            f" {DEFAULT_REFINE_RULE!r} has"
        )
    if chosen.logit_shift:
        raise ValueError(
            f"rule is {_short(rule)}; to revise a draft it must have logit_shift=0: under a shift"
            " nothing speaks of a block's first token"
        )
    parts = (drafted[i : i + block_length] for i in range(0, len(drafted), block_length))
    way = Diffusion(
        chosen,
        (Block(part, len(part)) for part in parts),
        len(ids) + len(drafted),
        seeded=False,
        eos="plain",
        keep_events=events,
    )
    return Request(ids, len(drafted), config.eos_token_id, way, checked_sampling(sampling))


def _short(rule: Rule | str) -> str:
    """A rule's name, or the fields in which it differs from the default."""
    if isinstance(rule, str):
        return repr(rule)
    changed = [field for field in fields(rule) if getattr(rule, field.name) != field.default]
    return f"Rule({', '.join(f'{each.name}={getattr(rule, each.name)!r}' for each in changed)})"


def checked_numerics(numerics: str) -> str:
    if numerics not in NUMERICS:
        raise ValueError(f"numerics is {numerics!r}; it must be one of {', '.join(NUMERICS)}")
    return numerics


def check_model(model: Model) -> None:
    if not isinstance(model, Model):
        raise TypeError(
            f"model is a {type(model).__name__}; it must be a Model, as load_model returns"
        )


def checked_ids(
    name: str, ids: Sequence[int], config: ModelConfig, *, may_be_empty: bool = False
) -> list[int]:
    try:
        ids = [operator.index(token) for token in ids]
    except TypeError:
        raise TypeError(f"{name} is {ids!r}; it must be a sequence of integer ids") from None
    if not ids and not may_be_empty:
        raise ValueError(f"{name} is empty; it must hold at least one token id")
    for token in ids:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"{name} holds {token}; ids must be in [0, {config.vocab_size})")
        if token == config.mask_token_id:
            raise ValueError(f"{name} holds {token}, the mask id, which stands for no token")
    return ids


def check_positions(config: ModelConfig, name: str, positions: int) -> None:
    if positions > config.max_position_embeddings:
        raise ValueError(
            f"{name} ends at position {positions}; the model has {config.max_position_embeddings}"
        )


def checked_sampling(sampling: Sampling | None) -> Sampling:
    if sampling is None:
        return Sampling()
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling is {sampling!r}; it must be a Sampling")
    return sampling


def checked_lora(lora: bool | None, model: Model) -> bool:
    if lora is None:
        return model.has_draft_lora
    check_bool("lora", lora)
    if lora and not model.has_draft_lora:
        raise ValueError("lora is True; the model's checkpoint held no draft LoRA")
    return lora


def checked_rule(
    rule: Rule | str | None, threshold: float | None, steps: int | None, block_length: int
) -> Rule:
    """The rule that is meant: given, by name, or by one of its two commonest numbers."""
    given = {"rule": rule, "threshold": threshold, "steps": steps}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        (first, value), (second, other) = list(given.items())[:2]
        raise ValueError(f"{first} is {value} beside {second}={other}; give one of them")
    if steps is not None:
        check_int("steps", steps, 1, block_length - 1)
        return Rule(steps=steps)
    if threshold is not None:
        check_number("threshold", threshold)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it must be in [0, 1]")
        return Rule(threshold=threshold)
    if rule is None:
        rule = DEFAULT_RULE
    if isinstance(rule, str):
        return rule_named(rule)
    if not isinstance(rule, Rule):
        raise TypeError(f"rule is {rule!r}; it must be a Rule or the name of one")
    bounded = ["remask_below"]
    if rule.confidence in ("probability", "margin"):
        bounded += ["threshold", "edit_threshold"]
    for name in bounded:
        value = getattr(rule, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"rule.{name} is {value}; it must be in [0, 1]")
    return rule
