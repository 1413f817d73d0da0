r"""Sampling at a temperature, and speculative rejection sampling, which keeps its distribution.

A request's distribution is softmax(logits / temperature) over the ids that its filters leave: the
top_k likeliest, of these the likeliest whose mass reaches top_p, of these the ones at least min_p
times as likely as the likeliest. Sorted by logit, each filter keeps a prefix; so does greedy
decoding, which is top_k = 1.

A token is drawn as argmax(log p - log(-log u)), one uniform u an id (the Gumbel-max trick).

Drafts d from q are verified by p (Leviathan et al., arXiv 2211.17192; Chen et al., 2302.01318):
draft i is accepted while u_i < p_i(d_i) / q_i(d_i), which happens with probability
sum min(p_i, q_i). At the first that is not, the token is drawn from max(p_i - q_i, 0) normalised,
and behind accepted drafts from p_K. Whatever q, tokens are then distributed as if drawn from p.

All noise comes from `dlm_kernels.noise` and is keyed by a request's seed, an absolute position, a
step and a stream that says what it is for. A loop that draws the same thing for one position twice
counts the step, so that no two draws share noise. Nothing here waits for the device.

Noise has 23 bits: in a distribution so flat that two ids of V draw the same extreme u, with
probability about V / 2**23, the lower id wins, and ids below about 4e-9 of the likeliest are never
drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels import noise
from dlm_kernels.validate import (
    FLOAT_DTYPES,
    ID_DTYPES,
    check_int,
    check_number,
    check_tensor,
)

_FLOAT32 = torch.finfo(torch.float32)
# Making noise takes about 120 bytes a word, half a gigabyte for so many.
_NOISE_AT_ONCE = 2**22


@dataclass(frozen=True)
class Sampling:
    """How a request chooses tokens; greedy by default.

    temperature: 0, always the likeliest token, or a positive float32 that divides the logits.
    top_k: keep so many of the likeliest ids; of equal ones the lowest.
    top_p: in (0, 1]; keep the fewest likeliest ids whose probabilities add up to at least this.
    min_p: in [0, 1); keep ids at least so likely as a share of the likeliest.
    seed: int64; the same seed gives the same noise.

    Filters apply in this order, each to what the one before left; they need a temperature.

    Raises:
        TypeError, ValueError: a field does not fit; the message names it and its value.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if value is not None or name == "temperature":
                check_number(name, value)
        check_int("seed", self.seed, -(2**63), 2**63 - 1)
        if self.top_k is not None:
            check_int("top_k", self.top_k, 1, 2**31 - 1)
        if self.temperature != 0 and not _FLOAT32.tiny <= self.temperature <= _FLOAT32.max:
            raise ValueError(
                f"temperature is {self.temperature}; it must be 0, which is greedy, or in"
                f" [{_FLOAT32.tiny:.3g}, {_FLOAT32.max:.3g}]"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if self.min_p is not None and not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; it must be in [0, 1)")
        for name in ("top_k", "top_p", "min_p"):
            if self.greedy and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is {getattr(self, name)} beside temperature=0, which is greedy and"
                    " filters nothing; give a temperature above 0"
                )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class SamplingTable(NamedTuple):
    """The settings of a batch on its device, a row a request, which may differ in all of them."""

    temperature: Tensor  # float32 [batch], 0: greedy
    top_k: Tensor  # int32 [batch], 0: all ids
    top_p: Tensor  # float32 [batch], 1: all ids
    min_p: Tensor  # float32 [batch], 0: all ids
    seed: Tensor  # int64 [batch]

    @classmethod
    def pack(cls, samplings: Sequence[Sampling], device: torch.device | str) -> "SamplingTable":
        """Copy to the device; once a batch, not once a step."""

        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            column([s.temperature for s in samplings], torch.float32),
            column([s.top_k or 0 for s in samplings], torch.int32),
            column([1.0 if s.top_p is None else s.top_p for s in samplings], torch.float32),
            column([s.min_p or 0.0 for s in samplings], torch.float32),
            column([s.seed for s in samplings], torch.int64),
        )


def distribution(logits: Tensor, table: SamplingTable, banned: Tensor) -> Tensor:
    """What each row is sampled from, as log-probabilities: float32 [batch, M, vocab].

    Args:
        logits: bfloat16, float16, float32 or float64 [batch, M, vocab], taken as float32.
        table: settings of each request.
        banned: int32 [n], ids in [0, vocab) that are taken out before anything else.

    Ids that are banned or filtered out have -inf. A greedy request has 0 at its likeliest id, the
    lowest of equal ones, and -inf elsewhere. A row with NaN, with +inf at an id that is not banned,
    or with nothing but -inf left is all NaN.

    On a CPU a row's bits depend on that row and its settings alone. Costs a sort of every row, and
    about 45 bytes of memory a logit.

    Raises:
        TypeError, ValueError: a dtype, shape or device does not fit; the message names it.
    """
    shape = ("batch", "M", "vocab")
    check_tensor("logits", logits, shape=shape, dtypes=(*FLOAT_DTYPES, torch.float64))
    batch, _, vocab = logits.shape
    device = logits.device
    _check_table(table, batch, device)
    check_tensor("banned", banned, shape=("n",), dtypes=(torch.int32,), device=device)

    greedy = table.temperature == 0
    # Only the likeliest is left of a greedy row, whatever divides it.
    temperature = torch.where(greedy, 1.0, table.temperature)[:, None, None]
    top_k = torch.where(table.top_k == 0, vocab, table.top_k)
    top_k = torch.where(greedy, 1, top_k)[:, None, None]
    top_p = table.top_p[:, None, None]
    min_p = table.min_p[:, None, None]

    allowed = logits.float().index_fill(-1, banned.long(), -math.inf)
    # With the largest at 0, no temperature takes a logit to +inf.
    below_best = allowed - allowed.amax(-1, keepdim=True)
    ordered, ids = below_best.sort(dim=-1, descending=True, stable=True)
    ordered = ordered / temperature
    kept = torch.arange(vocab, device=device) < top_k
    # Exclusive sum of the ids before each, among those that top_k left.
    probability = ordered.masked_fill(~kept, -math.inf).softmax(-1)
    before = probability.cumsum(-1).roll(1, -1)
    before[..., 0] = 0.0
    kept = kept & ((before < top_p) | (top_p == 1.0)) & (ordered.exp() >= min_p)
    kept = torch.zeros_like(kept).scatter(-1, ids, kept)
    return (below_best / temperature).masked_fill(~kept, -math.inf).log_softmax(-1)


def draw(
    log_probs: Tensor,
    table: SamplingTable,
    position: Tensor,
    step: Tensor,
    stream: int = noise.SAMPLE,
) -> Tensor:
    """Draw an id from each row: int32 [batch, M], -1 where the row holds NaN or only -inf.

    Args:
        log_probs: float32 [batch, M, vocab] from `distribution`; a constant added to a row changes
            nothing but rounding.
        table: settings of each request, for their seeds.
        position: int32 or int64 [batch, M], where in its request each id will stand; not negative.
        step: int32 or int64 that broadcasts to [batch, M], not negative. No two draws of a request
            may have position, step and stream in common.
        stream: what the draw is for, a constant of `dlm_kernels.noise`.

    Raises:
        TypeError, ValueError: a dtype, shape or device does not fit; the message names it.
    """
    shape = ("batch", "M", "vocab")
    check_tensor("log_probs", log_probs, shape=shape, dtypes=(torch.float32,))
    batch, m, vocab = log_probs.shape
    device = log_probs.device
    _check_table(table, batch, device)
    check_tensor("position", position, shape=(batch, m), dtypes=ID_DTYPES, device=device)
    step = _broadcast("step", step, (batch, m), device)

    rows = max(1, _NOISE_AT_ONCE // vocab)
    per_row = (
        log_probs.flatten(0, 1),
        table.seed[:, None].expand(batch, m).flatten(),
        position.flatten(),
        step.flatten(),
    )
    parts = zip(*(tensor.split(rows) for tensor in per_row), strict=True)
    return torch.cat([_draw_rows(*part, stream) for part in parts]).view(batch, m)


def _draw_rows(
    log_probs: Tensor, seed: Tensor, position: Tensor, step: Tensor, stream: int
) -> Tensor:
    """`draw` for log-probabilities [rows, vocab], all else [rows]."""
    ids = torch.arange(log_probs.shape[-1], device=log_probs.device)
    words = noise.philox(seed[:, None], ids, position[:, None], step[:, None], stream)
    gumbel = -(-noise.uniform(words).log()).log()
    best, token = (log_probs + gumbel).max(-1)
    return torch.where(best > -math.inf, token, -1).int()


def accept_drafts(
    draft_log_probs: Tensor,
    target_log_probs: Tensor,
    drafts: Tensor,
    table: SamplingTable,
    position: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """Verify drafts so that what is emitted is distributed as the target alone would have it.

    A cycle emits `drafts[:, :n_accepted]` and then `token`. For greedy requests that are the drafts
    up to the first that is not the target's choice, and that choice.

    Args:
        draft_log_probs: float32 [batch, K, vocab], K >= 1: what the drafts were drawn from.
        target_log_probs: float32 [batch, K + 1, vocab]. Row i is the distribution at the place of
            draft i given the drafts before it, the last row the one behind all drafts.
        drafts: int32 [batch, K] from `draw`.
        table: settings of each request, for their seeds.
        position: int32 or int64 [batch], where draft 0 stands; not negative.
        step: int32 or int64 that broadcasts to [batch], not negative; counts a request's cycles.
            Draft i is judged with the noise of position + i, and the token drawn with that of the
            place it will stand at, in streams of their own.

    Returns:
        n_accepted: int32 [batch], in [0, K].
        token: int32 [batch]; -1 where the target's row holds NaN. A draft whose rows hold NaN, or
            that is -1, is not accepted.

    Raises:
        TypeError, ValueError: a dtype, shape or device does not fit; the message names it.
    """
    shape = ("batch", "K", "vocab")
    float32 = (torch.float32,)
    check_tensor("draft_log_probs", draft_log_probs, shape=shape, dtypes=float32)
    batch, k, vocab = draft_log_probs.shape
    if k < 1:
        raise ValueError("draft_log_probs has no rows; there must be at least one draft")
    device = draft_log_probs.device
    check_tensor(
        "target_log_probs",
        target_log_probs,
        shape=(batch, k + 1, vocab),
        dtypes=float32,
        device=device,
    )
    check_tensor("drafts", drafts, shape=(batch, k), dtypes=(torch.int32,), device=device)
    _check_table(table, batch, device)
    check_tensor("position", position, shape=(batch,), dtypes=ID_DTYPES, device=device)
    step = _broadcast("step", step, (batch,), device)[:, None]

    place = position[:, None] + torch.arange(k, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    u = noise.uniform(noise.philox(table.seed[:, None], zero, place, step, noise.ACCEPT))
    # -1 is no index, but where it stands for a draft the draft's row is NaN and fails the test.
    ids = drafts.long().clamp(min=0)[:, :, None]
    log_q, log_p = draft_log_probs.gather(-1, ids), target_log_probs.gather(-1, ids)
    accepted = u.log() < (log_p - log_q)[:, :, 0]
    n_accepted = accepted.int().cumprod(1).sum(1, dtype=torch.int32)

    at = n_accepted.long()[:, None, None]
    log_p = _row(target_log_probs, at)
    log_q = _row(draft_log_probs, at.clamp(max=k - 1))
    residual = (log_p.exp() - log_q.exp()).clamp(min=0)
    # Behind the last draft there is nothing to take off. And where p is q but for rounding, a
    # rejection may leave no residual; p is the limit of what is right there.
    whole = (at == k) | ~(residual > 0).any(-1, keepdim=True)
    log_residual = torch.where(whole, log_p, residual.log())
    end = position[:, None] + n_accepted[:, None]
    token = draw(log_residual, table, end, step, stream=noise.RESIDUAL)
    return n_accepted, token[:, 0]


def _row(rows: Tensor, at: Tensor) -> Tensor:
    """Row `at` [batch, 1, 1] of each request's rows [batch, n, vocab]: [batch, 1, vocab]."""
    return rows.gather(1, at.expand(-1, -1, rows.shape[-1]))


def _check_table(table: SamplingTable, batch: int, device: torch.device) -> None:
    if not isinstance(table, SamplingTable):
        raise TypeError(f"table is a {type(table).__name__}; it must be a SamplingTable")
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64)
    for name, column, dtype in zip(table._fields, table, dtypes, strict=True):
        check_tensor(f"table.{name}", column, shape=(batch,), dtypes=(dtype,), device=device)


def _broadcast(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    sizes = ("any",) * tensor.dim() if isinstance(tensor, Tensor) else ()
    check_tensor(name, tensor, shape=sizes, dtypes=ID_DTYPES, device=device)
    try:
        return tensor.broadcast_to(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; it must broadcast to {list(shape)}"
        ) from None
