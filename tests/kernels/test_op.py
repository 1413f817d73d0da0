"""How an op is called: directly where nobody listens, else as one of torch's; and how leanly."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from test_errors import OPS
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dlm_kernels import linear, new_error_word
from dlm_kernels.op import Op

# An op's name is that of its public function, and of the module that holds it.
NAMES = [
    "block_attention", "confidence", "gated_silu", "linear", "lm_head_confidence", "remask_scatter",
    "residual_norm", "rope_kv_write",
]  # fmt: skip

# Python functions that a call enters, with a backend that does nothing: from the model, of an op
# that writes nothing or something, and from outside.
LEAN, WRITING = 8, 10
PUBLIC = 48


class Arrived(Exception):
    """The dispatcher was called."""


@pytest.fixture(autouse=True)
def poisoned() -> None:
    """Not here: it replaces functions of torch that are counted."""


def op_of(name: str) -> Op:
    return getattr(importlib.import_module(f"dlm_kernels.{name}"), f"{name}_op")


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's dispatcher ends every call that reaches it."""

    def arrive(*_: object) -> None:
        raise Arrived

    for name in NAMES:
        monkeypatch.setattr(op_of(name), "overload", arrive)


@pytest.mark.parametrize("name", NAMES)
def test_where_nobody_listens_the_dispatcher_is_not_asked(name: str, guarded: None) -> None:
    call, arguments = OPS[name]
    with torch.inference_mode() if name == "linear" else nullcontext():
        call(**arguments())


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class WatchingFunctions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Watched(Tensor):
    """A subclass, which may mean anything."""


def within_vmap() -> None:
    torch.vmap(lambda x: linear(x, torch.zeros(3, 4)))(torch.zeros(2, 5, 4))


def of_a_subclass() -> None:
    linear(torch.zeros(5, 4).as_subclass(Watched), torch.zeros(3, 4))


def within(context: Callable) -> Callable[[], None]:
    def call() -> None:
        with context():
            linear(torch.zeros(5, 4), torch.zeros(3, 4))

    return call


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(within(Watching), id="dispatch mode"),
        pytest.param(within(WatchingFunctions), id="function mode"),
        pytest.param(within(torch.profiler.profile), id="profiler"),
        of_a_subclass,
        within_vmap,
    ],
)
def test_whoever_listens_is_told(call: Callable[[], None], guarded: None) -> None:
    """By what torch keeps to itself: a version that renames it ends here, not in silence."""
    with pytest.raises(Arrived):
        call()


def test_a_profile_names_the_op() -> None:
    with torch.profiler.profile() as profile:
        linear(torch.zeros(5, 4), torch.zeros(3, 4))
    assert "dlm_kernels::linear" in {each.key for each in profile.key_averages()}


@pytest.mark.parametrize("name", NAMES)
def test_what_requires_grad_is_refused_by_name(name: str) -> None:
    call, arguments = OPS[name]
    given = arguments()
    own = next(key for key, x in given.items() if isinstance(x, Tensor) and x.is_floating_point())
    given[own] = given[own].clone().requires_grad_()
    message = rf"^(\w+\.)?{own}(\.\w+)? requires grad, and {name} has no gradient; "
    with pytest.raises(ValueError, match=message):
        call(**given)
    with torch.no_grad():
        call(**given)


@pytest.mark.parametrize("listening", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_has_another_version_and_nothing_else(name: str, listening: bool) -> None:
    call, arguments = OPS[name]
    given = arguments() | ({"error": new_error_word("cpu")} if name not in UNWRITTEN else {})
    tensors = dict(_tensors_of(given))
    before = {key: x._version for key, x in tensors.items()}
    with Watching() if listening else nullcontext():
        call(**given)
    written = {key for key, x in tensors.items() if x._version != before[key]}
    assert written == WRITTEN.get(name, set()) | ({"error"} if name not in UNWRITTEN else set())


UNWRITTEN = ("gated_silu", "linear", "residual_norm")  # ops that write nothing that they are given
WRITTEN = {
    "rope_kv_write": {"k_cache", "v_cache"},
    "remask_scatter": {
        "state.tokens", "state.commit_step", "state.commit_confidence", "state.masks_left",
        "state.step", "state.edit_step", "state.done",
    },
}  # fmt: skip


def _tensors_of(arguments: dict, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif hasattr(value, "_asdict"):
            yield from _tensors_of(value._asdict(), f"{name}.")


# --- how many functions a call enters


def entered(call: Callable[[], object]) -> int:
    """Python functions that are entered within a call, itself not counted."""
    found = []
    sys.setprofile(lambda frame, event, _: found.append(frame.f_code) if event == "call" else None)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len(found) - 1


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_lean(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count, which no busy machine disturbs; the bench has the microseconds."""
    op, (call, arguments) = op_of(name), OPS[name]
    given, seen = arguments(), []

    def nothing(call: tuple) -> object:
        seen.append(call)
        return result

    result = op.fake(_arguments_of(op, call, given))
    monkeypatch.setitem(op._backends, "torch", nothing)
    assert entered(lambda: call(**given)) <= PUBLIC
    writes = name not in UNWRITTEN
    assert entered(lambda: op(seen[0])) - 1 <= (WRITING if writes else LEAN)


def _arguments_of(op: Op, call: Callable, given: dict) -> tuple:
    """What the op is called with."""
    seen = []

    def keep(arguments: tuple) -> None:
        seen.append(arguments)
        raise Arrived

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Arrived):
        patch.setitem(op._backends, "torch", keep)
        call(**given)
    return seen[0]
