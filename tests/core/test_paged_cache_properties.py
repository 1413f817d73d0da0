"""Thousands of operations on a small pool, compared with plain lists after each."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

pytest.importorskip("hypothesis")
from caches import write
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dlm_core import PRESETS
from dlm_core.paged_cache import Context, OutOfPages, PagedKVCache, PagePool

PAGE, PAGES = 16, 12
STEPS = 100  # an example
CONFIG = replace(PRESETS["tiny"], num_hidden_layers=1, num_key_value_heads=1, head_dim=16)

indexes = st.integers(0, 2**16)


class Pool(RuleBasedStateMachine):
    """Contexts beside what each should hold: the number of the write that put each token there."""

    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(CONFIG, PAGES, PAGE, device="cpu", dtype=torch.float32)
        self.contexts: list[tuple[Context, list[int]]] = []
        self.writes = 0

    def pick(self, index: int, *, swapped: bool | None = False) -> tuple[Context, list[int]] | None:
        those = [
            each for each in self.contexts if swapped is None or each[0].is_swapped_out == swapped
        ]
        return those[index % len(those)] if those else None

    @rule(prefix=indexes)
    def begin(self, prefix: int) -> None:
        """A new context, behind what is published of another's content."""
        chosen = self.pick(prefix, swapped=None)
        known = list(chosen[1]) if chosen else []
        context = Context(self.pool, known)
        self.contexts.append((context, known[: context.length]))

    @rule(index=indexes, tokens=st.integers(1, 40), written=st.integers(0, 40))
    def append(self, index: int, tokens: int, written: int) -> None:
        """Reserve `tokens`, write them, and keep some: the rest was drafted for nothing."""
        chosen = self.pick(index)
        if chosen is None:
            return
        context, expected = chosen
        wanted, free = context.pages_to_reserve(tokens), self.pool.n_free
        try:
            context.reserve(tokens)
        except OutOfPages:
            assert wanted > free == self.pool.n_free
            return
        assert self.pool.n_free == free - wanted
        self.writes += 1
        cache = PagedKVCache([context])
        cache.check_room(tokens)
        values = torch.full((1, tokens, 1, CONFIG.head_dim), float(self.writes))
        write(cache, 0, values, -values)
        kept = min(tokens, written)
        cache.advance(kept)
        expected += [self.writes] * kept

    @rule(index=indexes, share=st.floats(0, 1))
    def crop(self, index: int, share: float) -> None:
        if chosen := self.pick(index):
            context, expected = chosen
            length = int(share * len(expected))
            context.crop(length)
            del expected[length:]

    @rule(index=indexes)
    def publish(self, index: int) -> None:
        if chosen := self.pick(index):
            context, expected = chosen
            self.pool.publish(expected, context.pages)

    @rule(index=indexes)
    def swap_out(self, index: int) -> None:
        if chosen := self.pick(index):
            chosen[0].swap_out()

    @rule(index=indexes)
    def swap_in(self, index: int) -> None:
        if chosen := self.pick(index, swapped=True):
            context, expected = chosen
            fits = self.pool.pages_for(len(expected)) <= self.pool.n_free
            try:
                context.swap_in()
            except OutOfPages:
                assert not fits
            assert context.is_swapped_out != fits

    @rule(index=indexes)
    def free(self, index: int) -> None:
        if chosen := self.pick(index, swapped=None):
            chosen[0].free()
            self.contexts = [each for each in self.contexts if each is not chosen]

    @invariant()
    def every_context_holds_what_was_written(self) -> None:
        type(self).operations += 1
        for context, expected in self.contexts:
            assert context.length == len(expected)
            if context.is_swapped_out:
                assert not context.pages
                continue
            pages = torch.tensor(context.pages, dtype=torch.long)
            keys = self.pool.keys[0][pages].flatten(0, 1)[: context.length].flatten(1)
            values = self.pool.values[0][pages].flatten(0, 1)[: context.length].flatten(1)
            assert (keys == torch.tensor(expected, dtype=torch.float32)[:, None]).all()
            assert (values == -keys).all()

    @invariant()
    def no_page_leaks(self) -> None:
        held = Counter(page for context, _ in self.contexts for page in context.pages)
        assert all(self.pool.users(page) == held[page] for page in range(PAGES))
        assert self.pool.n_free == PAGES - len(held)

    def teardown(self) -> None:
        for context, _ in self.contexts:
            context.free()
        assert self.pool.n_free == PAGES


@pytest.mark.parametrize("examples", [30, pytest.param(120, marks=pytest.mark.full)])
def test_operations_leak_and_mix_up_nothing(examples: int) -> None:
    Pool.operations = 0
    run_state_machine_as_test(
        Pool, settings=settings(max_examples=examples, stateful_step_count=STEPS, deadline=None)
    )
    assert Pool.operations >= 80 * examples
