"""An op that is quick to search: rows doubled, by a launch table of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm_bench.tuning.search import Search
from dlm_bench.tuning.space import Call, Series, Space

CPU = torch.device("cpu")
ARCH = "sm_90"


@dataclass(frozen=True)
class Tile:
    block: int
    warps: int


@dataclass(frozen=True)
class Entry:
    chunk: int = 32
    warps: int = 4
    tiles: dict[int, Tile] = field(default_factory=dict)
    library_rows: int = 0
    tuned: bool = False


class Doubling:
    """Rows doubled; `fault` may spoil a result, `cost` says how long an entry takes for rows."""

    def __init__(self, entry: Any, cost: Callable[[Any, int, str], float]) -> None:
        self.table = {ARCH: entry}
        self.cost = cost
        self.fault: Callable[[Any, Tensor], Tensor] = lambda entry, rows: rows
        self.timed: list[Any] = []

    @property
    def entry(self) -> Any:
        return self.table[ARCH]

    def space(self, *series: Series, **options: Any) -> Space:
        options = {"fields": {"chunk": (16, 32, 64, 128), "warps": (4, 8)}} | options
        return Space("doubling", self.table, (), series or (self.series(),), **options)

    def series(
        self, name: str = "rows", sizes: tuple[int, ...] = (1, 4), *, timed: bool = True
    ) -> Series:
        def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
            x = torch.arange(1.0, most + 1)

            def call(rows: int, numerics: str) -> Call:
                def run() -> tuple[Tensor]:
                    return (self.fault(self.entry, 2 * x[:rows]),)

                run.rows, run.numerics = rows, numerics
                return Call(run, run)

            return call

        return Series(name, sizes, build, timed)

    def clock(self, call: Call, seconds: float) -> float:
        call.run()
        self.timed.append(self.entry)
        return self.cost(self.entry, call.run.rows, call.run.numerics)

    def search(self, space: Space, **options: Any) -> Search:
        return Search(space, ARCH, CPU, self.clock, **options)


@pytest.fixture
def doubling() -> Doubling:
    """Fastest at a chunk of 128 and 8 warps."""
    return Doubling(Entry(), lambda entry, rows, numerics: 1 / (entry.chunk * entry.warps))


@pytest.fixture
def ladder() -> Doubling:
    """Tiles for up to 2 and for more rows, as fast as their blocks are long."""

    def cost(entry: Entry, rows: int, numerics: str) -> float:
        return 1 / (entry.chunk * entry.tiles[2 if rows <= 2 else 8].block)

    return Doubling(Entry(tiles={2: Tile(16, 4), 8: Tile(16, 4)}), cost)
