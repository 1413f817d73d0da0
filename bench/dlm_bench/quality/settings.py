"""What `dlm quality` decodes: the settings, and on how many examples each.

A run is bounded by what it counts, not by a clock: the headline settings see the whole sample, the
others its first examples.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from dlm_core import RULES
from dlm_core.decoding.new_request import DEFAULT_RULE
from dlm_core.quantization import KINDS

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)
HEADLINE_THRESHOLD = 0.9
STEPS = (1, 2, 4, 8, 16)
BLOCKS = (8, 16, 32)
DRAFTS = (4, 8, 16)  # of quadratic self-speculation
MOST = 168  # examples of each task

# What weights and cache are held in: `weights` and `float8_cache` of a Setting.
Way = tuple[str | None, bool]
PLAIN: Way = (None, False)
WAYS: tuple[Way, ...] = (*((kind, False) for kind in KINDS), (None, True))


@dataclass(frozen=True)
class Setting:
    """A way to decode: arguments of `dlm_core.generate`, and what weights and cache are held in.

    weights: "fp8", "int8" or "int4"; None for the checkpoint's own.
    """

    mode: str
    rule: str | None = None
    threshold: float | None = None
    steps: int | None = None
    block_length: int | None = None
    lora: bool | None = None
    weights: str | None = None
    float8_cache: bool = False

    @property
    def options(self) -> dict[str, object]:
        """Keyword arguments of `Batch.submit` beside the mode."""
        held = ("mode", "weights", "float8_cache")
        given = asdict(self).items()
        return {name: value for name, value in given if name not in held and value is not None}

    @property
    def way(self) -> Way:
        return self.weights, self.float8_cache

    @property
    def seeded(self) -> bool:
        """Whether the prefill gives an answer's first token, as it does but for some rules."""
        return self.rule is None or RULES[self.rule].seed_first_token

    @property
    def name(self) -> str:
        """In words: "diffusion, threshold 0.9, block 32, int8 weights"."""
        given = {
            "rule": self.rule,
            "threshold": self.threshold,
            "steps": self.steps,
            "k" if self.mode == "quadratic_spec" else "block": self.block_length,
        }
        words = [self.mode, *(f"{name} {value}" for name, value in given.items() if value)]
        words += ["LoRA"] * bool(self.lora)
        words += [f"{self.weights} weights"] * bool(self.weights)
        return ", ".join(words + ["float8 cache"] * self.float8_cache)


AUTOREGRESSIVE = Setting("autoregressive")


def headline(block_size: int, has_lora: bool, way: Way = PLAIN) -> dict[str, Setting]:
    """By short names the settings that stand for their modes, for a model of such blocks."""
    held = dict(zip(("weights", "float8_cache"), way, strict=True))
    blocks = held | {"block_length": block_size}
    found = {
        "AR": Setting("autoregressive", **held),
        "diffusion": Setting("diffusion", threshold=HEADLINE_THRESHOLD, **blocks),
        "linear": Setting("linear_spec", lora=False, **blocks),
        "linear, LoRA": Setting("linear_spec", lora=True, **blocks),
    }
    return dict(list(found.items())[: 3 + has_lora])


def standard(block_size: int, has_lora: bool) -> dict[Setting, int]:
    """How many examples of each task each setting decodes, of a model that was trained with blocks
    of up to `block_size`.
    """
    grid = dict.fromkeys(headline(block_size, has_lora).values(), MOST)
    for each in _others(has_lora):
        grid.setdefault(each, 12)
    for way in WAYS:
        grid |= dict.fromkeys(one_a_mode(block_size, has_lora, way), 31)
    return grid


def quick(block_size: int, has_lora: bool) -> dict[Setting, int]:
    """The first setting of each kind, on one example of each task, the headline on two."""
    first: dict[tuple, tuple[Setting, int]] = {}
    for each, n in standard(block_size, has_lora).items():
        first.setdefault((each.mode, each.way, each.lora, *each.options), (each, n))
    return {each: 1 + (n == MOST) for each, n in first.values()}


def one_a_mode(block_size: int, has_lora: bool, way: Way) -> list[Setting]:
    """Of the headline AR, diffusion and linear self-speculation, as it drafts best."""
    ar, diffusion, *_, speculation = headline(block_size, has_lora, way).values()
    return [ar, diffusion, speculation]


def _others(has_lora: bool) -> Iterator[Setting]:
    """Beyond the headline: what else a model of masks and unshifted logits can be decoded by."""
    for block in BLOCKS:
        for threshold in THRESHOLDS:
            yield Setting("diffusion", threshold=threshold, block_length=block)
        for steps in STEPS:
            if steps < block:
                yield Setting("diffusion", steps=steps, block_length=block)
        for name, rule in RULES.items():
            # The default rule is the headline threshold.
            if name != DEFAULT_RULE and not rule.logit_shift and not rule.renoise:
                yield Setting("diffusion", rule=name, block_length=block)
        for lora in (False, True)[: 1 + has_lora]:
            yield Setting("linear_spec", block_length=block, lora=lora)
    for k in DRAFTS:
        yield Setting("quadratic_spec", block_length=k)
