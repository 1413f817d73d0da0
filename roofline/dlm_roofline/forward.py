"""Which forward of a model is meant: what rows of records name and the cost model predicts."""

import math
from dataclasses import dataclass, replace

DECODE, DENOISE, DRAFT, VERIFY, QUADRATIC, LINEAR = KINDS = (
    "decode", "denoise", "draft", "verify", "quadratic", "linear",
)  # fmt: skip

# What the whole of each is called.
STEP_NAMES = {
    DECODE: "AR decoding step",
    DENOISE: "denoising step",
    DRAFT: "draft forward",
    VERIFY: "verify forward",
    QUADRATIC: "quadratic cycle",
    LINEAR: "linear cycle",
}

DTYPES = ("bfloat16", "float16", "float32")
WEIGHTS = ("fp8", "int8", "int4")


@dataclass(frozen=True)
class Forward:
    """One forward of a batch, or a cycle of two.

    kind: "decode", a causal token of each request. "denoise", a bidirectional block and what a
        denoising step does with its logits. "draft" and "verify", the bidirectional and the causal
        block of linear self-speculation; "linear", both as one cycle. "quadratic", a cycle of the
        quadratic: k groups of k + 1 rows.
    batch: requests.
    block: rows of each request: 1 in "decode", k (k + 1) in "quadratic".
    context: tokens in the cache of each request.
    dtype: of activations, cache, and of weights that are not quantised, as torch names it.
    weights: what the layers' projections are quantised to: "fp8", "int8", "int4", or None.
    float8_cache: keys and values in float8.
    """

    kind: str
    batch: int
    block: int
    context: int
    dtype: str
    weights: str | None = None
    float8_cache: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        if self.weights not in (None, *WEIGHTS):
            raise ValueError(
                f"weights is {self.weights!r}; it must be null or one of {', '.join(WEIGHTS)}"
            )
        for name, least in (("batch", 1), ("block", 1), ("context", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.kind == DECODE and self.block != 1:
            raise ValueError(f"block is {self.block}; it must be 1 in decode")
        if self.kind in (DRAFT, LINEAR) and self.block == 1:
            raise ValueError(
                f"block is 1; it must be at least 2 in {self.kind}, whose first token is given"
            )
        if self.kind == QUADRATIC and (self.k < 2 or self.k * (self.k + 1) != self.block):
            raise ValueError(
                f"block is {self.block}; it must be k (k + 1) of a k from 2 on in quadratic"
            )

    @property
    def rows(self) -> int:
        return self.batch * self.block

    @property
    def causal(self) -> bool:
        """Whether it writes its keys and values into the cache."""
        return self.kind in (DECODE, VERIFY, QUADRATIC)

    @property
    def k(self) -> int:
        """Drafts of a quadratic forward."""
        return math.isqrt(self.block)

    @property
    def draft_groups(self) -> tuple[int, int] | None:
        """(groups, their length) of a quadratic forward, as `block_attention` takes them."""
        return (self.k, self.k + 1) if self.kind == QUADRATIC else None

    @property
    def in_few_bits(self) -> str:
        """What of it is quantised, for the end of a phrase: ", int8 weights", or nothing."""
        weights = f", {self.weights} weights" if self.weights else ""
        return weights + (", float8 cache" if self.float8_cache else "")


def parts_of(forward: Forward) -> list[Forward]:
    """The forwards that run one after the other: of a linear cycle its draft and verification."""
    if forward.kind != LINEAR:
        return [forward]
    return [replace(forward, kind=kind) for kind in (DRAFT, VERIFY)]
