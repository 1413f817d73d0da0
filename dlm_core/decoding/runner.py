"""What all forwards of a batch share: the model, its numerics, and how work reaches the device."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels import (
    Confidence,
    DeviceError,
    new_error_word,
    raise_on_error,
)
from dlm_kernels.confidence import Selection, as_confidence
from dlm_kernels.error_word import NAN_LOGITS, set_where
from dlm_kernels.lm_head_confidence import LmHeadConfidenceCall, lm_head_confidence_op

from ..cache import KVCache
from ..model import Model
from ..paged_cache import PagedKVCache, PagePool, to_device
from . import sampling
from .request import Request
from .sampling import Sampling, SamplingTable

MAX_GRAPHS = 64
# Graphs are captured for contexts of up to so many tokens, then up to twice as many, and so on.
_SHORTEST_BOUND = 1024

# Device work: a function of (runner, shape, *inputs) alone, which reads nothing back. Its first
# output, [n, ...] of int32, is what the host wants to know.
Work = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Runner:
    """What a batch decodes with.

    banned: int32 [n], ids that are never chosen; banned_in_gap: those of a text's inside.
    error: the device error word, int32 [1].
    pool: the pages that `run` works on.
    graphs: captured work by what it was captured for, the last used last; None runs it eagerly.
        graph_pool: the device memory that all of them use.
    """

    model: Model
    numerics: str
    banned: Tensor
    banned_in_gap: Tensor
    error: Tensor
    pool: PagePool | None = None
    graph_pool: tuple[int, int] | None = None
    graphs: "OrderedDict[tuple, CapturedWork] | None" = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        model: Model,
        numerics: str = "batch_invariant",
        *,
        pool: PagePool | None = None,
        graphs: bool = False,
    ) -> "Runner":
        """A runner that bans the mask id, and in a gap EOS too.

        pool: the pages that `run` works on; None if a caller brings caches of its own.
        """
        mask_id, eos_id = model.config.mask_token_id, model.config.eos_token_id
        banned = torch.tensor([mask_id, eos_id], dtype=torch.int32, device=model.device)
        captured = OrderedDict() if graphs else None
        graph_pool = torch.cuda.graph_pool_handle() if graphs and banned.is_cuda else None
        error = new_error_word(model.device)
        return cls(model, numerics, banned[:1], banned, error, pool, graph_pool, captured)

    def banning_eos(self) -> "Runner":
        """The same, but for EOS, which is banned too."""
        return replace(self, banned=self.banned_in_gap)

    # --- parts of device work

    def hidden(self, tokens: Tensor, cache: KVCache | PagedKVCache, **options) -> Tensor:
        """`Model.forward` with this runner's numerics and error word."""
        return self.model(tokens, cache, numerics=self.numerics, error=self.error, **options)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden, self.numerics)

    def statistics(
        self,
        hidden: Tensor,
        *,
        tokens: Tensor | None = None,
        mask_id: int = -1,
        entropy: bool = False,
        margin: bool = False,
    ) -> Confidence:
        """`lm_head_confidence` of hidden states [batch, M, hidden_size], a row a token."""
        selection = Selection(tokens, mask_id, self.banned, entropy, margin, self.error)
        rows, head = hidden.flatten(0, 1), self.model.diffusion_head.weight
        found = lm_head_confidence_op(LmHeadConfidenceCall(rows, head, self.numerics, selection))
        return as_confidence(found, selection)

    def choose(
        self, hidden: Tensor, table: SamplingTable | None, position: Tensor, step: Tensor
    ) -> Tensor:
        """A token by each hidden state [batch, M, hidden_size]: int32 [batch, M], -1 for none.

        Greedy without a table; else drawn with each request's settings and the noise of (seed,
        position, step), int64 [batch, M].
        """
        if table is None:
            return self.statistics(hidden).token.view(hidden.shape[:2])
        log_probs = self.distribution(self.logits(hidden), table)
        return sampling.draw(log_probs, table, position, step)

    def distribution(self, logits: Tensor, table: SamplingTable) -> Tensor:
        """Log-probabilities [batch, M, vocab] that each request samples from."""
        set_where(self.error, logits.isnan(), NAN_LOGITS)
        return sampling.distribution(logits, table, self.banned)

    # --- running it

    def run(
        self, work: Work, shape: tuple, requests: Sequence[Request], rows: int, *inputs: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Do `work(self, shape, cache, *inputs)` for a batch and read its first output.

        rows: positions behind the contexts that the work touches. shape: all that the work depends
        on beside tensors. Where graphs are on, work of a shape is captured once and replayed.

        Returns the first output on the host and the other ones on the device. Raises DeviceError if
        the error word is set.
        """
        longest = max(request.context.length for request in requests)
        bound = longest
        if self.graphs is not None:
            bound = _SHORTEST_BOUND
            while bound < longest:
                bound *= 2
        cache = PagedKVCache([request.context for request in requests], max_length=bound, room=rows)
        tensors = (cache.block_table, cache.lengths, *inputs)
        call = _Call(work, shape, bound)
        if self.graphs is None:
            first, *others = call(self, *tensors)
            return self._checked(self._with_error(first).cpu(), first.shape), tuple(others)

        key = (call, *((tensor.shape, tensor.dtype) for tensor in tensors))
        captured = self.graphs.pop(key, None) or CapturedWork(self, call, tensors)
        self.graphs[key] = captured
        while len(self.graphs) > MAX_GRAPHS:
            self.graphs.popitem(last=False)
        host, others = captured.replay(tensors)
        return self._checked(host, captured.first_shape), others

    def read(self, values: Tensor) -> Tensor:
        """int32 `values` on the host, with the error word; waits for the device."""
        return self._checked(self._with_error(values).cpu(), values.shape)

    def _with_error(self, values: Tensor) -> Tensor:
        return torch.cat([values.flatten(), self.error])

    def _checked(self, host: Tensor, shape: torch.Size) -> Tensor:
        if host[-1]:
            self.error.zero_()  # what comes next may be fine
            raise_on_error(int(host[-1]))
        return host[:-1].view(shape)


class _Call(NamedTuple):
    """Work with everything but its tensors."""

    work: Work
    shape: tuple
    bound: int  # on the contexts' lengths

    def __call__(self, runner: Runner, block_table: Tensor, lengths: Tensor, *inputs: Tensor):
        cache = PagedKVCache.over(runner.pool, block_table, lengths, self.bound)
        return self.work(runner, self.shape, cache, *inputs)


class CapturedWork:
    """A call on buffers of its own, as a CUDA graph whose last node copies to pinned memory.

    On a CPU a replay runs the call again on the same buffers, which shows in tests that a call
    depends on nothing else.
    """

    def __init__(self, runner: Runner, call: _Call, tensors: Sequence[Tensor]) -> None:
        self._runner, self._call = runner, call
        self._inputs = [tensor.clone() for tensor in tensors]
        self._graph: torch.cuda.CUDAGraph | None = None
        # What the first run writes, the first replay writes again.
        if runner.error.is_cuda:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                first, *_ = call(runner, *self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            host = torch.empty(first.numel() + 1, dtype=torch.int32, pin_memory=True)
            graph = torch.cuda.CUDAGraph()
            # One after the other, graphs can share memory: what they leave is copied at once.
            with torch.cuda.graph(graph, pool=runner.graph_pool):
                first, *self._others = call(runner, *self._inputs)
                host.copy_(runner._with_error(first), non_blocking=True)
            self._graph, self._host, self._copied = graph, host, torch.cuda.Event()
            self.first_shape = first.shape

    def replay(self, tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The first output, flat with the error word behind it, on the host; and the others."""
        for mine, theirs in zip(self._inputs, tensors, strict=True):
            mine.copy_(theirs, non_blocking=True)
        # The buffers are for the next replay, whoever it serves, so what leaves is copied.
        if self._graph is None:
            first, *others = self._call(self._runner, *self._inputs)
            self.first_shape = first.shape
            return self._runner._with_error(first), tuple(tensor.clone() for tensor in others)
        self._graph.replay()
        self._copied.record()
        others = tuple(tensor.clone() for tensor in self._others)
        self._copied.synchronize()
        return self._host.clone(), others


def check_tokens(tokens: Sequence[int]) -> None:
    """Raise DeviceError if a token is -1: its row of logits had none to choose."""
    if min(tokens) < 0:
        raise DeviceError("a row of logits has no token to choose: all are -inf, or several +inf")


def table_of(samplings: Sequence[Sampling], device: torch.device) -> SamplingTable | None:
    """The settings of a batch on its device; None if it is greedy."""
    return None if samplings[0].greedy else packed(SamplingTable, tuple(samplings), device)


@functools.lru_cache(maxsize=256)
def packed(table: type, rows: tuple, device: torch.device):
    """`table.pack(rows, device)`, once for a batch that stays together, and without waiting."""
    fields = table.pack(rows, "cpu")
    return table(*(to_device(x, device) if isinstance(x, Tensor) else x for x in fields))
