"""How an op is defined, known to torch, and called.

An op is a NamedTuple of its arguments, a function of that tuple for each backend, and a fake, which
allocates what the others return. torch has it as `torch.ops.dlm_kernels.<name>`, so that it can be
compiled, traced and profiled. Its dispatcher costs more than the work of a small op: where nobody
listens there, the function is called directly.
"""

import typing
from collections.abc import Callable, Collection, Iterator
from operator import attrgetter
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.autograd.graph import increment_version

from . import backend

Arguments = TypeVar("Arguments", bound=tuple)  # a NamedTuple

_LIBRARY = torch.library.Library("dlm_kernels", "DEF")

# What a type is in a schema.
_SCHEMA = {
    Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float", bool: "bool",
    str: "str", torch.dtype: "ScalarType",
}  # fmt: skip

# Neither traced, nor a subclass with a meaning of its own.
_PLAIN = (Tensor, torch.nn.Parameter)


class Op(Generic[Arguments]):
    """An op; called with its arguments' tuple, whose contents it takes to be checked.

    Args:
        arguments: the tuple's class. A field is of a type in a schema, or a NamedTuple of such.
        fake: returns tensors like those of the backends, on any device, and computes nothing.
        check: reads the arguments on the host and raises ValueError, under DLM_CHECK=1 alone.
        mutated: names of the fields that it writes, as "error" or "cache.k_cache".
        backends: a function of the arguments for each of `backend.BACKENDS`.
    """

    def __init__(
        self,
        arguments: type[Arguments],
        *,
        name: str,
        fake: Callable[[Arguments], object],
        check: Callable[[Arguments], None] | None = None,
        mutated: Collection[str] = (),
        **backends: Callable[[Arguments], object],
    ) -> None:
        fields = _fields_of(arguments)
        self.name, self.fake = name, fake
        self._check, self._backends = check, backends
        self._names = [each for each, kind in fields.items() if kind in (Tensor, Tensor | None)]
        self._tensors, self._mutated = _getter(self._names), mutated and _getter(mutated)
        self._first, build = attrgetter(self._names[0]), _builder(arguments)
        returned = typing.get_type_hints(fake)["return"]
        _LIBRARY.define(
            f"{name}{_schema_of(fields, mutated)} -> {_returned(returned)}",
            tags=torch.Tag.pt2_compliant_tag,
        )
        # torch's dispatcher calls with the fields one by one.
        real, dry = (lambda *flat, to=to: to(build(iter(flat))) for to in (self._run, fake))
        _LIBRARY.impl(name, real, "CompositeExplicitAutograd")
        torch.library.register_fake(f"dlm_kernels::{name}", dry, lib=_LIBRARY)
        self.overload = getattr(torch.ops.dlm_kernels, name).default

    def __call__(self, arguments: Arguments) -> typing.Any:
        """Run it, by torch's dispatcher if anything listens there."""
        if torch.compiler.is_compiling():
            return self.overload(*_flat(arguments))
        direct = not somebody_listens()
        for tensor in self._tensors(arguments):
            if tensor is not None:
                if tensor.requires_grad and torch.is_grad_enabled():
                    self._refuse_gradients(arguments)
                if type(tensor) not in _PLAIN:
                    direct = False
        if direct or backend.is_dry():
            return self._run(arguments)
        return self.overload(*_flat(arguments))

    def _run(self, arguments: Arguments) -> object:
        if self._check is not None and backend.contents_checked():
            self._check(arguments)
        result = self._backends[backend.backend_for(self._first(arguments))](arguments)
        if self._mutated:
            increment_version([each for each in self._mutated(arguments) if each is not None])
        return result

    def _refuse_gradients(self, arguments: Arguments) -> None:
        for name, tensor in zip(self._names, self._tensors(arguments), strict=True):
            if tensor is not None and tensor.requires_grad:
                raise ValueError(
                    f"{name} requires grad, and {self.name} has no gradient; call it"
                    " under torch.no_grad(), or detach the tensor"
                )


def somebody_listens() -> bool:
    """Whether a mode, a functorch transform or the profiler is to see calls of torch's ops."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or profiler._is_profiler_enabled
    )


def _getter(names: Collection[str]) -> Callable[[tuple], tuple]:
    """The fields of these names, as a tuple; "a.b" is the field b of the tuple in a."""
    if len(names) > 1:
        return attrgetter(*names)
    get = attrgetter(*names)
    return lambda arguments: (get(arguments),)


def _fields_of(arguments: type[tuple], prefix: str = "") -> dict[str, object]:
    """Names and types of a NamedTuple's fields, those within its fields one by one."""
    fields: dict[str, object] = {}
    for name, kind in typing.get_type_hints(arguments).items():
        if _is_group(kind):
            fields |= _fields_of(kind, f"{prefix}{name}.")
        else:
            fields[prefix + name] = kind
    return fields


def _flat(arguments: tuple) -> list:
    """The fields one by one, in the schema's order."""
    flat = []
    for each in arguments:
        if isinstance(each, tuple):
            flat += _flat(each)
        else:
            flat.append(each)
    return flat


def _builder(arguments: type[tuple]) -> Callable[[Iterator], tuple]:
    """What makes such a tuple of its fields one by one."""
    kinds = typing.get_type_hints(arguments).values()
    parts = [_builder(kind) if _is_group(kind) else next for kind in kinds]
    return lambda flat: arguments(*(part(flat) for part in parts))


def _is_group(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple)


def _schema_of(fields: dict[str, object], mutated: Collection[str]) -> str:
    """As "(Tensor q, Tensor(a!)? error)"."""
    written = iter("abcdefghijklmnop")
    parts = []
    for name, kind in fields.items():
        text = _SCHEMA[kind]
        if name in mutated:
            text = text.replace("Tensor", f"Tensor({next(written)}!)")
        parts.append(f"{text} {_own_name(name)}")
    return f"({', '.join(parts)})"


def _own_name(name: str) -> str:
    """Of a field its name without those of the tuples around it, which no two of an op share."""
    return name.rpartition(".")[2]


def _returned(kind: object) -> str:
    if kind in (None, type(None)):
        return "()"
    if kind is Tensor:
        return "Tensor"
    return f"({', '.join(_SCHEMA[each] for each in typing.get_args(kind))})"
