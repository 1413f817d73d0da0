"""One request on its way: what it has, and what it wants to run next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from ..paged_cache import Context
from .result import Generation, StepEvent, cut
from .sampling import Sampling

if TYPE_CHECKING:
    from .runner import Runner


class Phase(NamedTuple):
    """What a request runs next. Requests whose phases are alike but for `room` run as one batch.

    run: one forward, or one cycle of two, for all of them; sets each request's next phase.
    shape: whatever has to agree beside `run`.
    room: tokens of cache that it may write.
    """

    run: Callable[[Runner, list[Request]], None]
    shape: tuple
    room: int


class Mode(Protocol):
    """How one request decodes; its state between phases."""

    @property
    def longest(self) -> int:
        """Tokens of cache that the request can come to need, its prompt included."""

    def first_phase(self, request: Request) -> Phase:
        """The next forward over the prompt, behind what the request's context holds of it."""

    def begin(self, request: Request, seed: Tensor | None, value: int | None) -> None:
        """Set the phase that follows the prompt.

        seed: int32 [1] on the device, the token that the prompt's last logits give; value: the
            same on the host. Both None if the mode asked for none.
        """


@dataclass(eq=False)
class Request:
    """One request of a `Batch`.

    finished: nothing more comes; also of a cancelled one. error: what dropped it, if anything did.
    tokens: ids that are decided for good, behind the prompt, before any cut.
    phase: what it runs next; None before it is let in and once it has all its tokens.
    events: StepEvents not yet taken, where they were asked for.
    The other fields are as in `Generation`.
    """

    prompt: list[int]
    max_new_tokens: int
    eos_id: int
    mode: Mode | None = field(repr=False)  # None once finished
    sampling: Sampling
    context: Context | None = field(default=None, repr=False)
    phase: Phase | None = field(default=None, repr=False)
    finished: bool = False
    error: BaseException | None = None
    tokens: list[int] = field(default_factory=list)
    forwards: Counter = field(default_factory=Counter)
    accepted: list[int] = field(default_factory=list)
    committed: list[list[int]] = field(default_factory=list)
    confidences: list[list[float]] = field(default_factory=list)
    events: list[StepEvent] = field(default_factory=list)
    _has_eos: bool = False
    _n_taken: int = 0

    def decide(self, tokens: list[int]) -> None:
        """Take tokens that will not change."""
        self.tokens += tokens
        self._has_eos |= self.eos_id in tokens

    def emit(self, tokens: list[int]) -> bool:
        """Take the last tokens of a phase; True if the request is finished by what it has."""
        self.decide(tokens)
        if self._has_eos or len(self.tokens) >= self.max_new_tokens:
            self.phase = None
            return True
        return False

    def take_new_tokens(self) -> list[int]:
        """The tokens that were decided since the last call, cut like the generation's."""
        end = self.max_new_tokens
        if self._has_eos:
            end = min(end, self.tokens.index(self.eos_id) + 1)
        new = self.tokens[self._n_taken : end]
        self._n_taken += len(new)
        return new

    @property
    def generation(self) -> Generation:
        """What there is so far; the whole once it is finished."""
        return Generation(
            cut(self.tokens, self.eos_id, self.max_new_tokens),
            dict(self.forwards),
            self.committed,
            self.confidences,
            self.accepted,
        )
