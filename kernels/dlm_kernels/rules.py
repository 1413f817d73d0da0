"""Unmasking rules: what a denoising step commits, edits, masks again and draws anew.

A `Rule` is plain data of the host. `RuleTable` holds one row of numbers a request on the device, so
that a batch mixes rules and a captured graph takes others. The presets state the published rules in
these terms; where one differs from its source, its docstring says in what.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .validate import MAX_BLOCK, check_bool, check_int, check_number

CONFIDENCES = ("probability", "margin", "entropy", "random")

# The columns of a RuleTable. A number that a rule does not set is NaN, which no comparison passes.
NUMBERS = ("threshold", "factor", "entropy_scale", "edit_threshold", "remask_below")
COUNTS = ("top_k", "steps", "edit_steps", "strict", "random", "renoise", "revise")

# Entropies are summed as integers, in units of bound / ENTROPY_UNITS, so that every backend and
# every order of summation finds the same sum. One entropy counts for at most bound + 1 unit: that
# already exceeds the bound, and MAX_BLOCK of them fit in an int32.
ENTROPY_UNITS = 2**22


@dataclass(frozen=True)
class Rule:
    """How the candidates of a step become tokens.

    The candidates are committed that any of `threshold`, `factor` and `entropy_bound` lets pass,
    and in any case the `top_k` surest, ties to the lowest position. Confidences are float32, and so
    are the numbers they are compared with.

    Attributes:
        confidence: what the caller passes as confidence: the candidate's "probability", its
            "margin" over the runner-up, or "entropy", the row's negative entropy in nats. Under
            "random" it is drawn, and what the caller passes is not read.
        threshold: candidates at least so sure pass, or surer than that if `strict`.
        strict: whether a confidence equal to `threshold` fails.
        top_k: at least so many are committed a step.
        steps: takes the place of top_k: what is undecided is split evenly over so many steps,
            earlier ones taking the remainder, and the last commits all that is left. Under `revise`
            only the last step is so; the ones before commit at least one.
        factor: the n surest pass, for the largest n with (n + 1)(1 - c_n) < factor, c_n being the
            n-th confidence.
        entropy_bound: candidates pass in order of entropy while the sum of the entropies before
            them, which is the sum less the largest, is at most this.
        edit_threshold: the candidate replaces a token that an earlier step committed, or that a
            draft holds, where it differs from it and is surer than this.
        edit_steps: at most so many further steps are taken once nothing is undecided; they end
            early at one that edits nothing.
        remask_below: tokens committed earlier or drafted, and not edited now, become masks again if
            their own probability is now below this: the least likely first, fewer than the step
            commits, but in the first step on a block without masks as many as there are. The last
            of `steps` remasks nothing.
        renoise: uniform corruption, without a mask token: an undecided position holds a random id,
            drawn anew each step.
        revise: with renoise: each step decides anew about all positions that are not fixed, so an
            EOS ends nothing before the block is done.
        seed_first_token: for decoding loops: the first token of a block comes from the causal
            logits before it.
        logit_shift: for decoding loops: the candidate of position i comes from the logits at
            i - logit_shift, 0 or 1; 1 needs seed_first_token.
        tempered_confidence: for decoding loops: confidences at a temperature are those of the
            distribution that is sampled from, not of the model's own.
    """

    confidence: str = "probability"
    threshold: float | None = None
    strict: bool = False
    top_k: int = 1
    steps: int | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    edit_threshold: float | None = None
    edit_steps: int = 0
    remask_below: float | None = None
    renoise: bool = False
    revise: bool = False
    seed_first_token: bool = True
    logit_shift: int = 0
    tempered_confidence: bool = False

    def __post_init__(self) -> None:
        if self.confidence not in CONFIDENCES:
            raise ValueError(
                f"confidence is {self.confidence!r}; it must be one of {', '.join(CONFIDENCES)}"
            )
        for name in ("threshold", "factor", "entropy_bound", "edit_threshold", "remask_below"):
            value = getattr(self, name)
            if value is None:
                continue
            check_number(name, value)
            if math.isnan(value):
                raise ValueError(f"{name} is NaN; it must be a number, or None for no {name}")
        for name in ("strict", "renoise", "revise", "seed_first_token", "tempered_confidence"):
            check_bool(name, getattr(self, name))
        check_int("top_k", self.top_k, 1, MAX_BLOCK)
        if self.steps is not None:
            check_int("steps", self.steps, 1, 2**31 - 1)
        check_int("edit_steps", self.edit_steps, 0, 2**31 - 1)
        check_int("logit_shift", self.logit_shift, 0, 1)
        if self.factor is not None and not 0 < self.factor < math.inf:
            raise ValueError(f"factor is {self.factor}; it must be positive and finite")
        if self.entropy_bound is not None and not 1e-6 <= self.entropy_bound <= 1e6:
            raise ValueError(
                f"entropy_bound is {self.entropy_bound}; it must be in [1e-6, 1e6] nats"
            )
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Raise if fields contradict each other."""
        if self.steps is not None and self.top_k != 1:
            raise ValueError(
                f"top_k is {self.top_k} beside steps={self.steps}; a budget sets top_k itself"
            )
        if self.strict and self.threshold is None:
            raise ValueError("strict is True without a threshold; it must be False")
        if self.edit_steps and self.edit_threshold is None:
            raise ValueError(
                f"edit_steps is {self.edit_steps} without an edit_threshold; it must be 0"
            )
        for name, wanted in (("factor", "probability"), ("entropy_bound", "entropy")):
            if getattr(self, name) is not None and self.confidence != wanted:
                raise ValueError(
                    f"confidence is {self.confidence!r} beside {name}={getattr(self, name)}; it "
                    f"must be {wanted!r}"
                )
        refused = {
            f"confidence={self.confidence!r}": ("threshold", "edit_threshold")
            if self.confidence == "random"
            else (),
            "renoise": ("remask_below",) if self.renoise else (),
            "revise": ("edit_threshold",) if self.revise else (),
        }
        for field, names in refused.items():
            for name in names:
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is {getattr(self, name)} beside {field}; it must be None"
                    )
        if self.logit_shift and not self.seed_first_token:
            raise ValueError(
                "seed_first_token is False beside logit_shift=1; it must be True, for the first"
                " position's logits lie before the block"
            )
        if self.revise and not self.renoise:
            raise ValueError("revise is True without renoise; it must be False")
        if self.revise and self.steps is None:
            raise ValueError("steps is None beside revise, which may never end; it must be given")


class RuleTable(NamedTuple):
    """The rules of a batch on the device, one row a request; see `pack`.

    Attributes:
        numbers: float32 [batch, 5], the columns NUMBERS of this module.
        counts: int32 [batch, 7], the columns COUNTS.
        uses_noise: some rule draws confidences or renoises.
        uses_token_probability: some rule remasks.

    A captured graph reads the two tensors in place: copy another table into them to change rules.
    The two flags are fixed at capture.
    """

    numbers: Tensor
    counts: Tensor
    uses_noise: bool
    uses_token_probability: bool

    @classmethod
    def pack(cls, rules: Sequence[Rule], device: torch.device | str) -> "RuleTable":
        """One row for each of `rules`. Raises TypeError if one is no Rule."""
        for i, rule in enumerate(rules):
            if not isinstance(rule, Rule):
                raise TypeError(f"rules[{i}] is a {type(rule).__name__}; it must be a Rule")
        numbers = [_numbers(rule) for rule in rules]
        counts = [_counts(rule) for rule in rules]
        return cls(
            torch.tensor(numbers, dtype=torch.float32, device=device).view(-1, len(NUMBERS)),
            torch.tensor(counts, dtype=torch.int32, device=device).view(-1, len(COUNTS)),
            any(rule.confidence == "random" or rule.renoise for rule in rules),
            any(rule.remask_below is not None for rule in rules),
        )


def _numbers(rule: Rule) -> list[float]:
    bound = rule.entropy_bound
    # Half units, which the ops round to units.
    scale = None if bound is None else 2 * ENTROPY_UNITS / bound
    values = (rule.threshold, rule.factor, scale, rule.edit_threshold, rule.remask_below)
    return [math.nan if value is None else float(value) for value in values]


def _counts(rule: Rule) -> list[int]:
    return [
        rule.top_k,
        rule.steps or 0,
        rule.edit_steps,
        int(rule.strict),
        int(rule.confidence == "random"),
        int(rule.renoise),
        int(rule.revise),
    ]


@functools.lru_cache(maxsize=256)
def _repeated(rule: Rule, batch: int, device: torch.device) -> RuleTable:
    return RuleTable.pack([rule] * batch, device)


def table_of(rule: Rule, batch: int, device: torch.device) -> RuleTable:
    """`rule` for each of `batch` requests; packed once, so that a captured graph copies nothing."""
    return _repeated(rule, batch, device)


# As torch.compiler.assume_constant_result marks it, which takes 2 s to import torch._dynamo.
table_of._dynamo_marked_constant = True


# --- presets


def nemotron() -> Rule:
    """Nemotron-Labs Diffusion: probability >= 0.9, and the surest always; seeds each block."""
    return Rule(threshold=0.9)


def llada() -> Rule:
    """LLaDA (ML-GSAI/LLaDA, generate.py): low-confidence remasking, so many a step, no more.

    There `steps` is for the whole answer; here it is for a block, and 32 is one position a step of
    a block of 32.
    """
    return Rule(steps=32, seed_first_token=False)


def llada2() -> Rule:
    """LLaDA2.1 (diffusers, BlockRefinementScheduler with the defaults of LLaDA2Pipeline).

    The schedule there stays as it was made from the block's length; here it is split anew each step
    over what is left, which commits less once thresholds have run ahead of it. There the steps
    after the last mask are counted past `max_post_steps`, which lets one more through.
    """
    return Rule(
        threshold=0.7,
        strict=True,
        steps=32,
        edit_threshold=0.5,
        edit_steps=16,
        seed_first_token=False,
        tempered_confidence=True,
    )


def fast_dllm() -> Rule:
    """Fast-dLLM's factor rule at its default of 1 (arXiv 2505.22618; NVlabs/Fast-dLLM).

    Its other rule, threshold 0.9, is `Rule(threshold=0.9, seed_first_token=False)`. The published
    code also commits the last candidate of all if only that one fails; the paper does not.
    """
    return Rule(factor=1.0, seed_first_token=False)


def dream() -> Rule:
    """Dream (HKUNLP/Dream, diffusion_generate with alg="entropy"): so many a step, by entropy.

    There the share of a step is rounded down, so that steps may commit nothing; here it is rounded
    up. Logits are shifted by one, as in the autoregressive model it was made from; those of the
    first position lie in the context, where no step changes them, so here it is committed first.
    """
    return Rule(
        confidence="entropy",
        steps=32,
        logit_shift=1,
        tempered_confidence=True,
    )


def sdar() -> Rule:
    """SDAR's low_confidence_dynamic (JetAstra/SDAR, generate.py): probability > 0.85, at least one.

    The least number there is the block's length over its denoising steps, which are as many as
    the block is long.
    """
    return Rule(threshold=0.85, strict=True, seed_first_token=False, tempered_confidence=True)


def entropy_bound() -> Rule:
    """EB-Sampler (arXiv 2505.24857) on masks: the entropy sum less its largest stays within 0.1."""
    return Rule(confidence="entropy", entropy_bound=0.1, seed_first_token=False)


def diffusion_gemma() -> Rule:
    """DiffusionGemma (transformers, EntropyBoundSampler): entropy bound 0.1, random ids, 48 steps.

    There decoding also ends once the likeliest tokens stay the same and are nearly certain; here it
    ends at a step that accepts every position, and the last of the 48 accepts what is left.
    """
    return Rule(
        confidence="entropy",
        entropy_bound=0.1,
        renoise=True,
        revise=True,
        steps=48,
        seed_first_token=False,
        tempered_confidence=True,
    )


_PRESETS = (nemotron, llada, llada2, fast_dllm, dream, sdar, entropy_bound, diffusion_gemma)
RULES = {preset.__name__: preset() for preset in _PRESETS}


def rule_named(name: str) -> Rule:
    """The preset of this name, one of those in RULES; `dataclasses.replace` changes its fields.

    Each is a function of this module, whose docstring names the source. Raises ValueError.
    """
    if name not in RULES:
        raise ValueError(f"rule is {name!r}; it must be one of {', '.join(RULES)}")
    return RULES[name]
