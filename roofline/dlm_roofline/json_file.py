"""Dataclasses from JSON files, checked field by field: of every record, and of acceptance."""

import json
import math
import re
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

Kind = typing.TypeVar("Kind")


def read(
    kind: type[Kind], path: str | Path, schema: int, *, made_by: str = "", root: str = "record"
) -> Kind:
    """A dataclass with a field `schema` from its JSON in a file, checked field by field.

    made_by: the command that writes files of this schema, for the error of one of another.
    root: what errors call the whole.

    A ValueError names the file and the field that is not as it must be.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    given = values.get("schema") if isinstance(values, dict) else None
    if given != schema:
        source = f", which {made_by} makes" if made_by else ""
        raise ValueError(f"{path}: schema is {given!r}; this version reads {schema}{source}")
    try:
        return _decoded(kind, values, root)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _decoded(kind: object, value: object, name: str) -> object:
    """`value` as JSON gives it, as an instance of the type `kind`; errors name the field."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _decoded(args[0], value, name)
    if origin is list:
        items = _of_type(list, value, name)
        return [_decoded(args[0], item, f"{name}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        items = _of_type(dict, value, name)
        return {key: _decoded(args[1], item, f"{name}.{key}") for key, item in items.items()}
    if is_dataclass(kind):
        given = dict(_of_type(dict, value, name))
        hints = typing.get_type_hints(kind)
        decoded = {}
        for each in fields(kind):
            if each.name not in given:
                raise ValueError(f"{name}.{each.name} is missing")
            decoded[each.name] = _decoded(
                hints[each.name], given.pop(each.name), f"{name}.{each.name}"
            )
        for unknown in given:
            raise ValueError(f"{name}.{unknown} is not a known field")
        try:
            return kind(**decoded)
        except (TypeError, ValueError) as error:
            # An error that begins with a field of its own goes on where this one's name ends.
            own = re.match(r"\w*", str(error))[0] in hints
            raise ValueError(f"{name}{'.' if own else ': '}{error}") from None
    if kind is float:
        try:
            number = float(_of_type((int, float), value, name))
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}; it must be finite")
        return number
    return _of_type(kind, value, name)


def _of_type(kind: type | tuple[type, ...], value: object, name: str) -> typing.Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = kind.__name__ if isinstance(kind, type) else "number"
        article = "an" if wanted == "int" else "a"
        raise ValueError(f"{name} is {value!r}; it must be {article} {wanted}")
    return value
