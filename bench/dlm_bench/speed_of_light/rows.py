"""The rows of `dlm gpu-bench`: what is held to which target, most important first."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from dlm_kernels import (
    Cost,
    block_attention_cost,
    confidence_cost,
    lm_head_confidence_cost,
    remask_scatter_cost,
)
from dlm_roofline.forward import DENOISE, DRAFT, QUADRATIC, VERIFY
from dlm_roofline.step_cost import step_cost

from . import ops, steps
from .device import Measured, UnderTest
from .record import Result
from .sizes import Sizes

SLOWER_BY_INVARIANCE = 1.05  # at most, for every row that has both numerics
FASTER_BY_WEIGHTS = {"fp8": 1.7, "int8": 1.7, "int4": 2.6}

# Figures that follow from timings, floor and peers; `figures_of` has them.
OF_FLOOR, OVER_FLOOR = "of floor's rate", "over floor"
OVER_BEST_PEER = "best peer's time over ours"
INVARIANT_OVER_FAST = "invariant over fast"


@dataclass(frozen=True)
class Check:
    """A bound on one figure of a result: "at least" or "at most" `value`."""

    figure: str
    sense: str
    value: float

    def holds(self, figure: float) -> bool:
        return figure >= self.value if self.sense == "at least" else figure <= self.value


@dataclass(frozen=True)
class Row:
    """One line of the table.

    target: in words. checks: what it comes to; empty where the row is only a curve's point.
    stages: compulsory costs of the stages, whose floors add up. seconds: what measuring it takes,
    roughly, with what it has to compile.
    """

    name: str
    target: str
    checks: tuple[Check, ...]
    stages: tuple[Cost, ...]
    dtype: str
    seconds: float
    measure: Callable[[UnderTest], Measured]


def rows_of(sizes: Sizes) -> list[Row]:
    """Every row, in the order in which they are measured."""
    config, dtype, size = sizes.config, sizes.dtype, sizes.dtype.itemsize
    block, vocab, context = config.block_size, config.vocab_size, sizes.context
    found: list[Row] = []

    def costs_of(*forward, **more) -> list[Cost]:
        return list(step_cost(config, sizes.forward(*forward, **more)).values())

    def add(name, target, checks, costs, seconds, measure, dtype: str = sizes.dtype_name) -> None:
        found.append(Row(name, target, tuple(checks), tuple(costs), dtype, seconds, measure))

    def add_step(batch: int, times: float) -> None:
        add(
            f"whole step, batch {batch}, context {context}",
            f"<= {times}x floor",
            [Check(OVER_FLOOR, "at most", times)],
            costs_of(DENOISE, batch),
            45 if batch == 1 else 15,  # the first makes the model and compiles its kernels
            partial(steps.measure_step, batch=batch),
        )

    def add_attention(batch: int, context: int) -> None:
        cost = block_attention_cost(
            batch,
            block,
            context,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            itemsize=size,
        )
        held = batch > 1 or context >= sizes.far
        checks = [Check(OF_FLOOR, "at least", 0.75)] * held
        add(
            f"block_attention, batch {batch}, context {context}",
            ">= 75% of floor's rate, " * held + ">= 1x every peer",
            [*checks, Check(OVER_BEST_PEER, "at least", 1.0)],
            [cost],
            20,
            partial(ops.measure_attention, batch=batch, context=context),
        )

    def add_confidence(batch: int, kind: torch.dtype) -> None:
        rows = batch * block
        small = batch == 1
        large = [
            Check("of read bandwidth", "at least", 0.85),
            Check("of the ratio of bytes", "at least", 0.9),
        ]
        name = str(kind).removeprefix("torch.")
        add(
            f"confidence, [{rows}, {vocab}] {name}",
            "<= 1.5x (launch + floor)"
            if small
            else ">= 85% of read bandwidth, >= 0.9x the ratio of bytes to softmax + gather",
            [Check("over launch + floor", "at most", 1.5)] if small else large,
            [confidence_cost(rows, vocab, itemsize=kind.itemsize)],
            8,
            partial(ops.measure_confidence, batch=batch, dtype=kind),
            dtype=name,
        )

    def add_quadratic(k: int, checks: list[Check]) -> None:
        add(
            f"quadratic self-speculation, k {k}, batch 1, context {context}",
            "<= 1.25x floor" if checks else "a point of time(rows)",
            checks,
            costs_of(QUADRATIC, rows=k * (k + 1)),
            10 if checks else 6,
            partial(steps.measure_quadratic_cycle, k=k),
        )

    add_step(1, 1.15)
    for rows in sizes.head_rows:
        add(
            f"LM head + confidence, {rows} row{'s' * (rows > 1)}",
            "<= 1.05x torch's product alone",
            [Check("over the product alone", "at most", 1.05)],
            [lm_head_confidence_cost(rows, config.hidden_size, vocab, itemsize=size)],
            8,
            partial(ops.measure_head, rows=rows),
        )
    for each in sizes.many_contexts:
        add_attention(sizes.many, each)
    add(
        f"linear self-speculation, a cycle, batch 1, context {context}",
        "<= 1.15x floor of its two forwards",
        [Check(OVER_FLOOR, "at most", 1.15)],
        costs_of(DRAFT) + costs_of(VERIFY),
        15,
        steps.measure_linear_cycle,
    )
    for kind in (dtype, torch.float32) if dtype != torch.float32 else (dtype,):
        add_confidence(sizes.many, kind)
    add_confidence(1, dtype)
    add(
        f"remask_scatter, batch {sizes.many}",
        "<= 6 us",
        [Check("us", "at most", 6.0)],
        [remask_scatter_cost(sizes.many, block)],
        5,
        partial(ops.measure_remask, batch=sizes.many),
    )
    add(
        f"memory of LM head + confidence + remask, batch {sizes.many}",
        "< 2% of one float32 logits tensor",
        [Check(f"{each}, of float32 logits", "at most", 0.02) for each in ops.NUMERICS],
        [],
        5,
        ops.measure_head_memory,
    )
    for batch in sizes.batches:
        add_step(batch, 1.4)
    for each in sizes.one_contexts:
        add_attention(1, each)
    add_quadratic(sizes.ks[0], [Check(OVER_FLOOR, "at most", 1.25)])
    for weights, times in FASTER_BY_WEIGHTS.items():
        add(
            f"step with {weights} weights, batch 1, context {context}",
            f">= {times}x faster than 16 bits" + " (a stretch)" * (weights == "int4"),
            [Check("16-bit step over ours", "at least", times)],
            costs_of(DENOISE, weights=weights),
            25,
            partial(steps.measure_quantized_step, weights=weights),
        )
    for batch in (sizes.many, 1):
        heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        cost = block_attention_cost(
            batch, block, sizes.fp8_context, *heads, itemsize=size, cache_itemsize=1
        )
        add(
            f"block_attention, fp8 cache, batch {batch}, context {sizes.fp8_context}",
            ">= 1.7x faster than a 16-bit cache (bench/NOTES.md: out of reach at its floor)",
            [Check("16-bit cache over ours", "at least", 1.7)],
            [cost],
            8,
            partial(ops.measure_fp8_attention, batch=batch),
        )
    for k in sizes.ks[1:]:
        add_quadratic(k, [])
    return found


def figures_of(result: Result) -> dict[str, float]:
    """A result's figures, and those that follow from its timings, floor and peers."""
    figures = dict(result.figures)
    ours = result.timings.get("fast") or result.timings.get("both")
    if ours is None:
        return figures
    if result.floor is not None:
        figures |= {OF_FLOOR: result.floor / ours.median, OVER_FLOOR: ours.median / result.floor}
    times = [peer.timing.median for peer in result.peers if peer.timing]
    if times:
        figures[OVER_BEST_PEER] = min(times) / ours.median
    if "invariant" in result.timings:
        figures[INVARIANT_OVER_FAST] = result.timings["invariant"].median / ours.median
    return figures


def checks_of(row: Row, result: Result) -> tuple[Check, ...]:
    """The row's checks, and that invariance costs little where there are both numerics."""
    if "invariant" not in result.timings or not row.checks:
        return row.checks
    return *row.checks, Check(INVARIANT_OVER_FAST, "at most", SLOWER_BY_INVARIANCE)


def verdict(row: Row, result: Result | None) -> str:
    """ "yes", "no", or "-" where nothing says: no target, or a figure that is not there."""
    if result is None or result.refused is not None or not row.checks:
        return "-"
    figures = figures_of(result)
    checks = checks_of(row, result)
    known = [check.holds(figures[check.figure]) for check in checks if check.figure in figures]
    if not all(known):
        return "no"
    return "yes" if len(known) == len(checks) else "-"
