"""What a search is given: calls to time, and the values that an entry's fields may take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """run: what is timed. result: what is compared. reset: puts back what either changes."""

    run: Callable[[], object]
    result: Callable[[], tuple[Tensor, ...]]
    reset: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Series:
    """Calls of one op that differ in their size: how many rows or requests they take.

    build: makes inputs on a device for the largest size; gives the call of each size and numerics.
        What a smaller call returns is the first part of what a larger one returns.
    timed: else the calls are compared only.
    """

    name: str
    sizes: tuple[int, ...]
    build: Callable[[torch.device, int], Callable[[int, str], Call]]
    timed: bool = True


@dataclass(frozen=True)
class Space:
    """What is searched for one entry.

    table: of `dlm_kernels.launch`, {architecture: entries}; keys: of the entry among those.
    fields: values by field, ascending, searched together. tile_fields: of each of its `tiles`.
    last_tile_fields: of the entry, searched with the last tile; a row's bits don't depend on them.
    main: the sizes that `fields` are chosen by; empty for all.
    legal: what launchers and kernels take for granted of an entry.
    crossover: field that holds the most rows for which numerics "fast" runs the op's own kernel.
    tolerance: largest difference of a result, as a share of its largest value.
    """

    op: str
    table: dict[str, Any]
    keys: tuple[int | str, ...]
    series: tuple[Series, ...]
    fields: dict[str, tuple[int, ...]]
    tile_fields: dict[str, tuple[int, ...]] = field(default_factory=dict)
    last_tile_fields: dict[str, tuple[int, ...]] = field(default_factory=dict)
    main: tuple[int, ...] = ()
    legal: Callable[[Any], bool] = lambda entry: True
    crossover: str | None = None
    tolerance: float = 1e-2

    @property
    def name(self) -> str:
        return " ".join(map(str, (self.op, *self.keys)))

    def entry(self, arch: str) -> Any:
        holder, key = self._place(arch)
        return holder[key]

    @contextmanager
    def holding(self, arch: str, entry: Any) -> Iterator[None]:
        """The op launches with `entry` meanwhile."""
        holder, key = self._place(arch)
        present, holder[key] = holder[key], entry
        try:
            yield
        finally:
            holder[key] = present

    def _place(self, arch: str) -> tuple[dict, int | str]:
        holder, path = self.table, (arch, *self.keys)
        for key in path[:-1]:
            holder = holder[key]
        return holder, path[-1]
