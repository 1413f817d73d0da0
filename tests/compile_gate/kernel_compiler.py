"""Compiles kernels for GPUs that are not there, exactly as a launcher would launch them.

A launcher is run on meta tensors with `JITFunction.run` replaced by a recorder. The recorded
arguments go through the JIT's own specialisation (types, divisibility by 16, ones and None as
constants), so what is read here is what runs.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from dlm_kernels import launch

_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_COMPILED: dict[tuple[str, str, str], "CompiledKernel"] = {}  # by architecture, source, options


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel as compiled for one architecture."""

    name: str
    arch: str
    constants: dict
    shared: int  # bytes a program
    ttgir: str = field(repr=False)  # the program over threads, before it is machine code
    cubin: bytes = field(repr=False)

    @cached_property
    def usage(self) -> dict[str, int]:
        """REG, STACK, LOCAL ... as cuobjdump reports them."""
        text = self._tool("cuobjdump", "--dump-resource-usage")
        return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}

    @cached_property
    def sass(self) -> list[str]:
        """The machine instructions in order, labels included, without addresses."""
        listing = self._tool("nvdisasm", "-c")
        lines = (re.sub(r"/\*.*?\*/", "", line).strip() for line in listing.splitlines())
        return [
            line for line in lines if line and not line.startswith((".section", ".align", "//"))
        ]

    @property
    def spills(self) -> int:
        """Instructions that move registers to or from local memory."""
        if self.usage["STACK"] == self.usage["LOCAL"] == 0:
            return 0  # there is none to move to, and no need of the slow disassembly
        return sum(bool(re.search(r"\b(STL|LDL)\b", line)) for line in self.sass)

    def loops(self) -> list[list[str]]:
        """Bodies of the innermost loops: a label up to the branch back to it."""
        labels = {line[:-1]: i for i, line in enumerate(self.sass) if line.endswith(":")}
        spans = []
        for i, line in enumerate(self.sass):
            target = re.search(r"\bBRA\b.*`\((\S+)\)", line)
            if target and labels.get(target[1], i) < i:
                spans.append((labels[target[1]], i))
        bodies = []
        for first, last in spans:
            inside = [s for s in spans if s != (first, last) and first <= s[0] and s[1] <= last]
            if not inside:
                lines = self.sass[first : last + 1]
                bodies.append([line for line in lines if not line.endswith(":")])
        return bodies

    def _tool(self, tool: str, *flags: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [_BINARIES / tool, *flags, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile_launches(arch: str, launcher: Callable[[], object]) -> list[CompiledKernel]:
    """Every kernel that `launcher` would launch on `arch`, compiled for it."""
    recorded = []

    def record(kernel, *args, grid, warmup, **kwargs):
        recorded.append((kernel, args, kwargs))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(launch, "arch_of", lambda device: arch),
    ):
        launcher()
    return [_compile(arch, kernel, args, kwargs) for kernel, args, kwargs in recorded]


def _compile(arch: str, kernel: JITFunction, args: tuple, kwargs: dict) -> CompiledKernel:
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*args, **kwargs)
    options, signature, constants, attrs = kernel._pack_args(
        backend, {**kwargs, "debug": False}, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attrs)
    key = arch, source.hash(), options.hash()
    if key in _COMPILED:
        return _COMPILED[key]
    compiled = triton.compile(source, target=target, options=options.__dict__)
    names = [parameter.name for parameter in kernel.params]
    _COMPILED[key] = CompiledKernel(
        name=kernel.__name__,
        arch=arch,
        constants={names[path[0]]: value for path, value in constants.items()},
        shared=compiled.metadata.shared,
        ttgir=compiled.asm["ttgir"],
        cubin=compiled.asm["cubin"],
    )
    return _COMPILED[key]
