"""Entries that lie next to an entry of a launch table."""

from dataclasses import replace
from itertools import combinations
from typing import Any

Axes = dict[tuple, tuple[int, ...]]  # values by a field's path: (name,) or ("tiles", key, name)


def single_changes(entry: Any, axes: Axes) -> list[Any]:
    """Entries that differ in one field."""
    return [
        changed(entry, path, value)
        for path, values in axes.items()
        for value in values
        if value != value_at(entry, path)
    ]


def double_changes(entry: Any, axes: Axes) -> list[Any]:
    """Entries that differ in one field, or in two by the next value of each."""
    doubles = [
        changed(changed(entry, first, one), second, other)
        for first, second in combinations(axes, 2)
        for one in _next_to(value_at(entry, first), axes[first])
        for other in _next_to(value_at(entry, second), axes[second])
    ]
    return single_changes(entry, axes) + doubles


def value_at(entry: Any, path: tuple) -> int:
    if len(path) == 1:
        return getattr(entry, path[0])
    tiles, key, name = path
    return getattr(getattr(entry, tiles)[key], name)


def changed(entry: Any, path: tuple, value: int) -> Any:
    if len(path) == 1:
        return replace(entry, **{path[0]: value})
    tiles, key, name = path
    old = getattr(entry, tiles)
    return replace(entry, **{tiles: old | {key: replace(old[key], **{name: value})}})


def _next_to(value: int, values: tuple[int, ...]) -> list[int]:
    below, above = [x for x in values if x < value], [x for x in values if x > value]
    return [*below[-1:], *above[:1]]
