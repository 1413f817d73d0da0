"""What the end of a step allocates at batch 64: LM head, confidence and remasking.

Under 2% of one tensor of float32 logits, beyond their inputs.
"""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlm_kernels import BlockState, Rule, lm_head_confidence, new_error_word, remask_scatter
from dlm_kernels.rules import COUNTS, NUMBERS

BATCH, BLOCK, VOCAB, HIDDEN, MASK, EOS = 64, 32, 131072, 4096, 100, 11
ROWS = BATCH * BLOCK
LIMIT = 0.02 * 4 * ROWS * VOCAB

# As __init__ binds each op's function to its module's name, modules are imported by path.
confidence, lm_head, remask = (
    importlib.import_module(f"dlm_kernels.{name}")
    for name in ("confidence", "lm_head_confidence", "remask_scatter")
)


@pytest.fixture(autouse=True)
def poisoned() -> None:
    """None here: canaries are allocations too."""


@pytest.fixture(autouse=True)
def small_launches() -> None:
    """Not here: sizes are those of a model, and launches those that ship."""


class Allocations(TorchDispatchMode):
    """Adds up the bytes of every storage that appears, as if none was ever freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._seen: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for given in (*args, *(kwargs or {}).values()):
            self._count(given, 0)
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            self._count(made, 1)
        return result

    def _count(self, value: object, weight: int) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen[storage._cdata] = value  # kept, so that no other takes its place
                self.bytes += weight * storage.nbytes()


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels by name, in the order they would be launched in; none is."""
    names = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **kwargs: names.append(self.name)

    for module in (confidence, lm_head, remask):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorder(name))
    return names


@pytest.mark.parametrize("numerics", ["batch_invariant", "fast"])
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "entropy-margin"])
def test_launchers_allocate_under_two_percent_of_float32_logits(
    numerics: str, extras: bool, launches: list[str]
) -> None:
    bf16 = torch.bfloat16
    hidden, weight = empty(ROWS, HIDDEN, dtype=bf16), empty(VOCAB, HIDDEN, dtype=bf16)
    tokens, banned, error = empty(BATCH, BLOCK), empty(1), empty(1)
    ints, floats = empty(BATCH, BLOCK), empty(BATCH, BLOCK, dtype=torch.float32)
    fixed, done = empty(BATCH, BLOCK, dtype=torch.bool), empty(BATCH, dtype=torch.bool)
    rule = empty(BATCH, len(NUMBERS), dtype=torch.float32), empty(BATCH, len(COUNTS))
    counters = [empty(BATCH) for _ in range(3)]
    with Allocations() as allocations:
        asked = confidence.Selection(tokens.view(-1), MASK, banned, extras, extras, error)
        token, probability, *_ = lm_head._launch(
            lm_head.LmHeadConfidenceCall(hidden, weight, numerics, asked)
        )
        chosen = token.view(BATCH, BLOCK), probability.view(BATCH, BLOCK)
        state = BlockState(tokens, fixed, ints, floats, *counters, done)
        remask._launch(
            remask.RemaskScatterCall(
                state, *chosen, *rule, None, None, None, VOCAB, MASK, EOS, error
            )
        )
    parts = VOCAB // (2**23 // ROWS)
    product = ["head_kernel"] if numerics == "batch_invariant" else ["chunk_kernel"] * parts
    assert launches == [*product, "merge_kernel", "remask_kernel"]
    assert 0.01 * LIMIT < allocations.bytes < LIMIT


@pytest.mark.gpu
@pytest.mark.parametrize("numerics", ["batch_invariant", "fast"])
def test_peak_memory_is_under_two_percent_of_float32_logits(numerics: str) -> None:
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    hidden, weight = torch.randn(ROWS, HIDDEN, **options), torch.randn(VOCAB, HIDDEN, **options)
    state = BlockState.start(torch.full((BATCH, BLOCK), MASK, device="cuda"), MASK)
    banned = torch.tensor([MASK], dtype=torch.int32, device="cuda")
    error = new_error_word("cuda")

    def run() -> None:
        stats = lm_head_confidence(
            hidden, weight, tokens=state.tokens.view(-1), mask_id=MASK, banned=banned,
            numerics=numerics, error=error,
        )  # fmt: skip
        chosen = (x.view(BATCH, BLOCK) for x in stats[:2])
        remask_scatter(state, *chosen, Rule(), mask_id=MASK, eos_id=EOS, error=error)

    run()  # what libraries keep is theirs
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    assert torch.cuda.max_memory_allocated() - before < LIMIT
