"""JSON files of settings: reading one, and checking its values."""

import json
import math
from pathlib import Path
from typing import Any


def read_object(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file holds; a ValueError names the file and what it is instead."""
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; it must hold an object")
    return values


def check_count(key: str, value: Any, low: int = 1, high: float = math.inf) -> None:
    """Raise unless a key's value is an integer in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} is {value!r}; it must be an integer")
    if not low <= value <= high:
        raise ValueError(f"{key} is {value}; it must be in [{low}, {high}]")


def check_number(
    key: str, value: Any, above: float = -math.inf, at_least: float = -math.inf
) -> None:
    """Raise unless a key's value is a finite number within its bound."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{key} is {value!r}; it must be a number")
    if not (above < value < math.inf and value >= at_least):
        bound = f"above {above}" if above > at_least else f"at least {at_least}"
        raise ValueError(f"{key} is {value}; it must be finite and {bound}")
