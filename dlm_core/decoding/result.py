"""What a decoding loop hands back."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Generation:
    """One finished request.

    tokens: generated ids, cut after the first EOS and at max_new_tokens.
    forwards: forwards run, by kind: prefill, decode, denoise, commit, draft, verify; kinds that ran
        only.
    committed: per denoising step, over all blocks, the positions in the block that it committed.
    confidences: beside `committed`, the confidence each was committed with, of its rule's kind: a
        probability, a margin, a negative entropy in nats, or a random number.
    accepted: per cycle of self-speculation, the tokens that it emitted, before any cut.
    """

    tokens: list[int]
    forwards: dict[str, int]
    committed: list[list[int]] = field(default_factory=list)
    confidences: list[list[float]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    @property
    def tpf(self) -> float | None:
        """Tokens per forward, the prefill's forwards not counted; None if nothing else ran."""
        counted = sum(count for kind, count in self.forwards.items() if kind != "prefill")
        return len(self.tokens) / counted if counted else None


@dataclass(frozen=True)
class StepEvent:
    """One denoising step.

    block, step: counted from 0, the step within its block.
    tokens: the whole block after the step; where undecided the mask id, or under a rule with
        `renoise` a random one.
    committed: positions in the block that this step committed or edited, rising.
    confidences: beside `committed`, as in `Generation`.
    edited: those of `committed` where it replaced another token, rising.
    remasked: positions that were decided or drafted and are undecided again, rising.
    undecided: positions that are undecided after the step, rising.
    """

    block: int
    step: int
    tokens: list[int]
    committed: list[int]
    confidences: list[float]
    edited: list[int]
    remasked: list[int]
    undecided: list[int]


def cut(tokens: list[int], eos_id: int, max_new_tokens: int) -> list[int]:
    """`tokens` up to and including the first EOS, and at most `max_new_tokens` of them."""
    if eos_id in tokens:
        tokens = tokens[: tokens.index(eos_id) + 1]
    return tokens[:max_new_tokens]
