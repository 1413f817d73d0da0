"""What `dlm quality` measures: the settings, and how many examples each is measured on.

A run is bounded by what it counts, not by a clock: the headline settings see the whole sample, the
rest of the grid its first examples.
"""

from dataclasses import dataclass

from dlm_core import RULES
from dlm_core.decoding.new_request import DEFAULT_RULE
from dlm_kernels import Rule
from dlm_roofline.records import Skipped

from .evaluate import Setting

SEED = 1
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)
STEPS = (1, 2, 4, 8, 16)
BLOCKS = (8, 16, 32)
DRAFTS = (4, 8, 16)  # of quadratic self-speculation
HEADLINE_THRESHOLD = 0.9

AUTOREGRESSIVE = Setting("autoregressive")

_OTHER_MODES = [
    Skipped("mode infill", "fills a gap between two texts; it does not answer a prompt"),
    Skipped("mode refine", "revises a draft; it does not answer a prompt"),
]


@dataclass(frozen=True)
class Grid:
    """headline: settings that see `per_task` examples of each task; the others see `rest_per_task`.

    blocks: block lengths of the oracle and of perplexities. passages: texts for the latter.
    skipped: modes and rules that are left out, and why.
    """

    headline: list[Setting]
    rest: list[Setting]
    per_task: int
    rest_per_task: int
    blocks: tuple[int, ...]
    passages: int
    skipped: list[Skipped]


def headline_diffusion(block_size: int) -> Setting:
    return Setting("diffusion", threshold=HEADLINE_THRESHOLD, block_length=block_size)


def linear_spec(block_length: int, *, lora: bool) -> Setting:
    return Setting("linear_spec", block_length=block_length, lora=lora)


def standard(block_size: int, *, has_lora: bool) -> Grid:
    """The whole grid, for a model trained with blocks of up to `block_size`."""
    loras = (False, True) if has_lora else (False,)
    headline = [
        AUTOREGRESSIVE,
        headline_diffusion(block_size),
        *(linear_spec(block_size, lora=lora) for lora in loras),
    ]
    rules, skipped = _rules()
    rest = [
        Setting("diffusion", threshold=threshold, block_length=block)
        for block in BLOCKS
        for threshold in THRESHOLDS
    ]
    rest += [
        Setting("diffusion", steps=steps, block_length=block)
        for block in BLOCKS
        for steps in STEPS
        if steps < block
    ]
    rest += [
        Setting("diffusion", rule=rule, block_length=block) for block in BLOCKS for rule in rules
    ]
    rest += [linear_spec(block, lora=lora) for block in BLOCKS for lora in loras]
    rest += [Setting("quadratic_spec", block_length=k) for k in DRAFTS]
    rest = [setting for setting in rest if setting not in headline]
    return Grid(headline, rest, 168, 12, BLOCKS, 32, [*_OTHER_MODES, *skipped])


def quick(block_size: int, *, has_lora: bool) -> Grid:
    """One setting of each kind on two examples of each task: does it all run?"""
    whole = standard(block_size, has_lora=has_lora)
    kept: dict[tuple, Setting] = {}
    for each in whole.rest:
        kind = (each.mode, each.threshold is None, each.steps is None, each.rule is None)
        kept.setdefault(kind, each)
    return Grid(whole.headline, list(kept.values()), 2, 1, (BLOCKS[0],), 2, whole.skipped)


def _rules() -> tuple[list[str], list[Skipped]]:
    """The presets that suit a model of masks and unshifted logits, and why the others do not.

    The default one is the headline threshold, which is measured anyway.
    """
    suited, skipped = [], []
    for name, rule in RULES.items():
        if why := _unsuited(rule):
            skipped.append(Skipped(f"rule {name}", why))
        elif name != DEFAULT_RULE:
            suited.append(name)
    return suited, skipped


def _unsuited(rule: Rule) -> str | None:
    if rule.logit_shift:
        return "made for models whose denoising logits are shifted by one"
    if rule.renoise:
        return "made for models that denoise random ids, not masks"
    return None
