"""The device under test: its clock, its roof, its memory, and the model that rows share."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dlm_core import KVCache, Model, random_model
from dlm_roofline.ceilings import Ceilings
from dlm_roofline.records import Peer, Timing

from ..timing import Stopwatch
from .sizes import Sizes

SECONDS_A_TIMING = 0.3


class Measured(NamedTuple):
    """What a row's measurement gives; see `record.Result`."""

    timings: dict[str, Timing]
    peers: list[Peer]
    figures: dict[str, float]


@triton.jit
def _empty_kernel(out_ptr):
    pass


@dataclass
class UnderTest:
    """What measurements are given."""

    device: torch.device
    sizes: Sizes
    ceilings: Ceilings
    stopwatch: Stopwatch

    @classmethod
    def of(cls, device: torch.device, sizes: Sizes, ceilings: Ceilings) -> "UnderTest":
        return cls(device, sizes, ceilings, Stopwatch(device, budget=SECONDS_A_TIMING))

    def clock(
        self, fn: Callable[[], object], *, reset: Callable[[], object] = lambda: None
    ) -> Timing:
        """Time `fn` as the decoding loop runs it: on a GPU one replayed CUDA graph, cold caches."""
        on_gpu = self.device.type == "cuda"
        time_it = self.stopwatch.time_graph if on_gpu else self.stopwatch.time
        return time_it(fn, reset=reset)

    @cached_property
    def launch(self) -> Timing:
        """An empty kernel; on a host a call that does nothing."""
        if self.device.type != "cuda":
            return self.clock(lambda: None)
        out = torch.empty(1, device=self.device)
        return self.clock(lambda: _empty_kernel[(1,)](out))

    def peak_bytes(self, fn: Callable[[], object]) -> int | None:
        """Bytes that `fn` takes on top of what is allocated; None on a host, which counts none."""
        if self.device.type != "cuda":
            return None
        fn()  # what a first run keeps, compiled code and workspaces, is not the step's
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        fn()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    @cached_property
    def model(self) -> Model:
        """Random weights, made once."""
        return self.new_model()

    def new_model(self) -> Model:
        """The same random weights again, for a row that changes them."""
        return random_model(self.sizes.config, device=self.device, dtype=self.sizes.dtype)

    def random_cache(self, batch: int, room: int) -> KVCache:
        """Contexts of random keys and values, with room for so many tokens behind them."""
        context = self.sizes.context
        cache = KVCache(
            self.sizes.config, batch, context + room, device=self.device, dtype=self.sizes.dtype
        )
        for tensor in (*cache.keys, *cache.values):
            tensor.normal_()
        cache.advance(context)
        return cache

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.sizes.dtype)

    def tidy(self) -> None:
        """Give back what the last row leaves, before the next one asks how much there is."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
