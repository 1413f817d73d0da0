"""How many tokens a forward gives: acceptance profiles, by mode, block length and threshold.

Hardware decides what a forward takes, the model and its texts how many tokens come of it; with both
a mode's tokens per second follow. Profiles are published or measured by `dlm quality`.
"""

from dataclasses import dataclass
from pathlib import Path

from dlm_core.config import PRESETS, ModelConfig

from .forward import DECODE, DENOISE, LINEAR, QUADRATIC, Forward
from .records import RESULTS, read

SCHEMA = 1  # of files of profiles
SMALL_MODEL_PROFILE = RESULTS / "quality" / "acceptance.json"  # of its own answers

AUTOREGRESSIVE, DIFFUSION, LINEAR_SPEC, QUADRATIC_SPEC = MODES = (
    "autoregressive", "diffusion", "linear_spec", "quadratic_spec",
)  # fmt: skip

# The kind of forward that a cycle of each mode is. The commit of a finished block is one more in
# the count of diffusion's tokens per forward, and costs what its steps do but for the unmasking.
_CYCLES = {
    AUTOREGRESSIVE: DECODE,
    DIFFUSION: DENOISE,
    LINEAR_SPEC: LINEAR,
    QUADRATIC_SPEC: QUADRATIC,
}


@dataclass(frozen=True)
class Setting:
    """A way to decode, and what it gives.

    mode: one of MODES.
    size: the block length, in speculation at least 2; of quadratic_spec k, of autoregressive 1.
    threshold: the confidence from which diffusion commits; None of other modes and rules.
    tokens_per_forward: every forward but the prefill counted; linear_spec has two a cycle.
    accuracy: share of right answers, 0 to 1; None where nobody has measured it.
    """

    mode: str
    size: int
    threshold: float | None
    tokens_per_forward: float
    accuracy: float | None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; it must be one of {', '.join(MODES)}")
        # Speculation of one token would draft none.
        least = 2 if self.mode in (LINEAR_SPEC, QUADRATIC_SPEC) else 1
        if self.size < least or (self.size != 1 and self.mode == AUTOREGRESSIVE):
            wanted = "1" if self.mode == AUTOREGRESSIVE else f"at least {least}"
            raise ValueError(f"size is {self.size}; it must be {wanted} in {self.mode}")
        if self.threshold is not None and (self.mode != DIFFUSION or not 0 <= self.threshold <= 1):
            raise ValueError(
                f"threshold is {self.threshold}; it must be 0 to 1 in diffusion, else null"
            )
        most = self.size / self._forwards
        if not 0 < self.tokens_per_forward <= most:
            raise ValueError(
                f"tokens_per_forward is {self.tokens_per_forward}; {self.mode} of size {self.size}"
                f" gives more than 0 and at most {most:g}"
            )
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError(f"accuracy is {self.accuracy}; it must be in 0 to 1")

    @property
    def name(self) -> str:
        """In words: "diffusion 32, ≥ 0.9"."""
        if self.mode == AUTOREGRESSIVE:
            return self.mode
        size = f"k {self.size}" if self.mode == QUADRATIC_SPEC else str(self.size)
        threshold = "" if self.threshold is None else f", ≥ {self.threshold:g}"
        return f"{self.mode} {size}{threshold}"

    @property
    def _forwards(self) -> int:
        """Of a cycle: a draft and its verification are two."""
        return 2 if self.mode == LINEAR_SPEC else 1

    @property
    def tokens_per_cycle(self) -> float:
        """Tokens that one cycle gives each request, in the mean."""
        return self.tokens_per_forward * self._forwards

    def cycle(self, batch: int, context: int, dtype: str, **kinds: object) -> Forward:
        """One cycle behind `context` tokens; kinds: weights and float8_cache, as of a `Forward`."""
        block = self.size * (self.size + 1) if self.mode == QUADRATIC_SPEC else self.size
        return Forward(_CYCLES[self.mode], batch, block, context, dtype, **kinds)


@dataclass(frozen=True)
class Profile:
    """What the settings of one model give on one set of texts.

    name: of the model. source: where the figures are from, in words.
    """

    schema: int
    name: str
    source: str
    settings: list[Setting]

    def __post_init__(self) -> None:
        if not self.settings:
            raise ValueError("settings is empty; a profile must have at least one")


def _published(name: str, *figures: tuple[float, float]) -> Profile:
    """figures: accuracy in percent and tokens per forward, by MODES."""
    how = [(AUTOREGRESSIVE, 1, None), (DIFFUSION, 32, 0.9)]
    how += [(LINEAR_SPEC, 32, None), (QUADRATIC_SPEC, 16, None)]
    settings = [
        Setting(*each, tokens, round(percent / 100, 4))
        for each, (percent, tokens) in zip(how, figures, strict=True)
    ]
    source = (
        f"Nemotron-Labs Diffusion {name.upper()} instruct, published results: averages of ten"
        " tasks, blocks of 32, threshold 0.9, k 16"
    )
    return Profile(SCHEMA, name, source, settings)


PUBLISHED = {
    "3b": _published("3b", (55.50, 1.0), (52.90, 1.91), (55.00, 4.36), (55.80, 5.42)),
    "8b": _published("8b", (63.61, 1.0), (63.18, 2.57), (62.81, 5.99), (64.04, 6.38)),
    "14b": _published("14b", (67.46, 1.0), (66.51, 2.74), (66.36, 5.96), (68.15, 6.92)),
}


def published_for(config: ModelConfig) -> Profile | None:
    """What was published for a model of these sizes."""
    found = (profile for name, profile in PUBLISHED.items() if PRESETS[name] == config)
    return next(found, None)


def load_profile(path: str | Path) -> Profile:
    """The profile in a JSON file; see `records.read`."""
    return read(Profile, path, schema=SCHEMA)
