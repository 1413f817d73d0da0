"""block_attention, invariant numerics: a row's bits are a function of its own query and keys."""

import importlib
from typing import NamedTuple

import pytest
import torch
from attention_inputs import KINDS, attention_inputs, cached_rows, paged, tensors_of
from numeric import BFLOAT16, assert_all_same_bits, unchanged
from torch import Tensor

from dlm_kernels import block_attention, launch, new_error_word
from dlm_kernels.backend import forced_backend

attention = importlib.import_module("dlm_kernels.block_attention")
NAN = float("nan")
F16 = torch.float16

Results = tuple[Tensor, Tensor]


@pytest.fixture
def op_device(backend: str, request: pytest.FixtureRequest) -> str:
    """What libraries on a GPU do is theirs: the torch backend promises its bits on a CPU only."""
    return "cpu" if backend == "torch" else request.getfixturevalue("triton_device")


def assert_same(actual: Results, expected: Results, what: str = "") -> None:
    assert all(x.isfinite().all() for x in actual)
    assert_all_same_bits(actual, expected, what)


def part(arguments: dict, first: int, rows: int, behind: float = NAN) -> dict:
    """The call of the rows first .. first + rows of one request's causal block.

    The cache is as long, and holds `behind` after the last of their keys.
    """
    context = int(arguments["context_lens"]) + first
    changed = {"q": arguments["q"][:, first : first + rows]}
    changed["context_lens"] = arguments["context_lens"] + first
    for name in ("k_cache", "v_cache"):
        changed[name] = arguments[name].clone()
        changed[name][:, context + rows :] = behind
    return arguments | changed


def rows_of(results: Results, first: int, rows: int) -> Results:
    return tuple(x[:, first : first + rows] for x in results)


class Causal(NamedTuple):
    """A causal block of one request; `page_size` is for calls that are compared with it."""

    arguments: dict
    backend: str
    page_size: int

    @property
    def context(self) -> int:
        return int(self.arguments["context_lens"])

    @property
    def block(self) -> int:
        return self.arguments["q"].shape[1]

    def run(self, arguments: dict | None = None, **options) -> Results:
        arguments = self.arguments if arguments is None else arguments
        with forced_backend(self.backend):
            return block_attention(**arguments, **options)

    def in_pages(self, arguments: dict) -> dict:
        return paged(arguments, self.page_size) if self.page_size else arguments


GPU_ALONE = [
    pytest.param(
        {"context": 900, "block": 256, "dtype": dtype, "heads": heads, "head_dim": width},
        id=f"shipped-{width}-wide-{str(dtype)[6:]}",
        marks=[pytest.mark.full, pytest.mark.gpu],
    )
    for dtype in (torch.bfloat16, F16)
    for heads, width in (((4, 1), 128), ((2, 1), 256))
]


@pytest.fixture(
    params=[
        pytest.param({}, id="group-of-three"),
        pytest.param({"dtype": F16, "heads": (4, 1), "head_dim": 32}, id="group-of-four-fp16"),
        pytest.param({"float8": True, "heads": (2, 2), "dtype": F16}, id="float8"),
        pytest.param({"page_size": 16}, id="pages"),
        pytest.param({"backend": "torch", "heads": (1, 1)}, id="torch"),
        pytest.param(
            {"backend": "torch", "dtype": F16, "heads": (4, 1), "head_dim": 128}, id="torch-fp16"
        ),
        pytest.param({"context": 900, "block": 256}, id="shipped", marks=pytest.mark.full),
        pytest.param(
            {"context": 900, "block": 256, "dtype": F16, "heads": (4, 1), "head_dim": 64},
            id="shipped-fp16",
            marks=pytest.mark.full,
        ),
        *GPU_ALONE,
    ]
)
def causal(request: pytest.FixtureRequest) -> Causal:
    options = {"heads": (3, 1), "context": 20, "block": 50} | request.param
    backend, page_size = options.pop("backend", "triton"), options.pop("page_size", 0)
    device = "cpu" if backend == "torch" else request.getfixturevalue("triton_device")
    arguments = attention_inputs("causal", [options.pop("context")], device, **options)
    return Causal(arguments, backend, page_size)


def test_causal_rows_do_not_depend_on_the_block(causal: Causal) -> None:
    """Alone, as when decoding, among 32, as when verifying, and among all."""
    whole = causal.run()
    # The last rows before and the first behind the ends of splits, here at 32, 64 and 1024.
    alone = {0, *(end - causal.context for end in (31, 32, 63, 64, 1023, 1024))}
    pieces = [(row, 1) for row in sorted(alone) if 0 <= row < causal.block]
    for first, rows in ((0, 32), (5, 17), *pieces):
        actual = causal.run(causal.in_pages(part(causal.arguments, first, rows)))
        assert_same(actual, rows_of(whole, first, rows), f"of {rows} rows from {first}")


def test_causal_rows_do_not_depend_on_what_lies_behind(causal: Causal) -> None:
    first, rows = 10, 8
    here = part(causal.arguments, first, rows)
    seen = causal.context + first + rows
    tight = {name: here[name][:, :seen] for name in ("k_cache", "v_cache")}
    expected = causal.run(here | tight)
    longer = {
        name: torch.cat([here[name], here[name][:, seen:].repeat(1, 3, 1, 1)], 1) for name in tight
    }
    for name, arguments, options in (
        ("before zeros", part(causal.arguments, first, rows, behind=0.0), {}),
        ("before large numbers", part(causal.arguments, first, rows, behind=400.0), {}),
        ("in a cache of more splits", here | longer, {}),
        ("with a tight max_context", here | longer, {"max_context": seen - rows}),
        ("with a loose max_context", here | longer, {"max_context": seen + 20}),
    ):
        assert_same(causal.run(arguments, **options), expected, name)


def test_rows_do_not_depend_on_batch_or_capacity(causal: Causal) -> None:
    """Causal ones and, of the same queries, bidirectional ones, between two neighbours."""
    rows, capacity = 8, causal.context + causal.block
    q = causal.arguments["q"][:, -rows:]
    caches = {name: causal.arguments[name] for name in ("k_cache", "v_cache")}
    fresh = {name: torch.randn_like(q[:, :, : caches["k_cache"].shape[2]]) for name in "kv"}
    for bidirectional, context in ((False, 50), (True, 32), (True, 61)):
        own = fresh if bidirectional else {}
        lengths = torch.tensor([5, context, capacity - rows], device=q.device).int()
        seen = context + (0 if bidirectional else rows)
        alone = {"q": q, "context_lens": lengths[1:2]} | own
        among = {name: x.repeat(3, *[1] * (x.dim() - 1)) for name, x in (alone | caches).items()}
        alone |= {name: x[:, :seen] for name, x in caches.items()}
        among["context_lens"] = lengths
        # One neighbour short and spoiled by NaN, one longer.
        for name in caches:
            among[name][0], among[name][2] = NAN, 1.0
        together = causal.run(causal.in_pages(causal.arguments | among))
        expected = causal.run(causal.arguments | alone)
        assert_same(rows_of_request(together, 1), expected, f"{bidirectional}, {context}")


def rows_of_request(results: Results, b: int) -> Results:
    return tuple(x[b : b + 1] for x in results)


@pytest.mark.gpu
@pytest.mark.parametrize("numerics", ["batch_invariant", "fast"])
def test_the_same_call_gives_the_same_bits(numerics: str, causal: Causal) -> None:
    first = causal.run(numerics=numerics)
    assert_same(causal.run(numerics=numerics), first, "a second time")


# --- pages


@pytest.mark.parametrize(
    ("kind", "page_size", "options"),
    [
        ("bidirectional", 16, {}),
        ("bidirectional", 128, {"dtype": F16}),
        ("causal", 16, {"float8": True}),
        ("causal", 32, {"dtype": F16}),
        ("drafts", 32, {}),
        ("drafts", 16, {"float8": True}),
        pytest.param("causal", 32, {"dtype": torch.bfloat16}, marks=pytest.mark.gpu),
        pytest.param("drafts", 16, {"dtype": torch.bfloat16}, marks=pytest.mark.gpu),
    ],
)
def test_pages_have_the_bits_of_a_contiguous_cache(
    kind: str, page_size: int, options: dict, backend: str, op_device: str
) -> None:
    arguments = attention_inputs(kind, [61, 0, 33], op_device, **options)
    in_pages, error = paged(arguments, page_size), new_error_word(op_device)
    with unchanged(*tensors_of(in_pages)):
        actual = block_attention(**in_pages, error=error)
    assert_same(actual, block_attention(**arguments))
    assert not error.item()


@pytest.mark.parametrize("kind", KINDS)
def test_requests_may_share_pages(kind: str, backend: str, op_device: str) -> None:
    arguments = attention_inputs(kind, [50, 40, 70], op_device, heads=(2, 1))
    for name in ("k_cache", "v_cache"):
        arguments[name][1:, :32] = arguments[name][0, :32]
    in_pages = paged(arguments, 16, shared=32)
    assert in_pages["block_table"][:, :2].unique(dim=0).shape[0] == 1
    assert_same(block_attention(**in_pages), block_attention(**arguments))


# --- draft groups


@pytest.mark.parametrize(
    ("contexts", "options"),
    [
        pytest.param([0, 26], {"groups": (3, 9), "block": 27}, id="a-cycle"),
        pytest.param([3, 22], {"groups": (1, 9), "block": 21, "dtype": F16}, id="first-pass"),
        pytest.param([20, 55, 64], {"groups": (5, 3), "block": 25}, id="across-a-split"),
        pytest.param([105], {"groups": (4, 3), "block": 17, "dtype": F16}, id="across-a-far-split"),
        pytest.param(
            [26, 57], {"groups": (5, 3), "block": 25, "float8": True, "heads": (2, 2)}, id="float8"
        ),
        pytest.param(
            [1015, 250], {"groups": (16, 17), "block": 272, "heads": (2, 1)}, id="sixteen-drafts",
            marks=pytest.mark.full,
        ),
        pytest.param(
            [55], {"groups": (5, 3), "block": 25, "dtype": torch.bfloat16}, id="bf16",
            marks=pytest.mark.gpu,
        ),
    ],
)  # fmt: skip
def test_causal_rows_and_slot_0_have_the_bits_of_a_causal_call(
    contexts: list[int], options: dict, backend: str, op_device: str
) -> None:
    arguments = attention_inputs("drafts", contexts, op_device, **{"heads": (3, 1)} | options)
    causal = {name: x for name, x in arguments.items() if name not in ("k", "v", "draft_groups")}
    rows = cached_rows(options["block"], options["groups"])
    whole = block_attention(**arguments)
    middle = len(rows) // 2
    for first, last in ((0, len(rows)), (middle, middle + 1), (len(rows) - 1, len(rows))):
        together = rows[first:last]
        changed = {"q": arguments["q"][:, together]}
        changed["context_lens"] = arguments["context_lens"] + first
        changed["max_context"] = max(contexts) + first
        expected = block_attention(**causal | changed)
        assert_same(tuple(x[:, together] for x in whole), expected, f"of rows {together}")


@pytest.mark.parametrize("dtype", [torch.float32, F16, BFLOAT16])
def test_masks_do_not_depend_on_other_groups_or_the_batch(
    dtype: torch.dtype, backend: str, op_device: str
) -> None:
    arguments = attention_inputs(
        "drafts", [53, 20], op_device, dtype, groups=(3, 20), block=67, heads=(2, 1), capacity=120
    )
    whole = block_attention(**arguments)
    for b, group in ((0, 2), (1, 1)):
        at, rows = slice(b, b + 1), slice(7 + 20 * group, 7 + 20 * (group + 1))
        one = {name: x[at] for name, x in arguments.items() if isinstance(x, Tensor)}
        one |= {name: one[name][:, rows] for name in "qkv"}
        one["context_lens"] = one["context_lens"] + 7 + group
        alone = block_attention(**one, draft_groups=(1, 20), return_lse=True)
        assert_same(alone, tuple(x[at, rows] for x in whole), f"of group {group}")


# --- programs that walk all splits


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bidirectional", {"dtype": F16}),
        ("bidirectional", {"float8": True, "page_size": 16}),
        ("causal", {"page_size": 16, "dtype": F16}),
        ("causal", {"float8": True, "dtype": F16}),
        ("causal", {"dtype": torch.float32}),
        ("drafts", {"dtype": torch.float32}),
        ("drafts", {"page_size": 16, "dtype": F16}),
        pytest.param("bidirectional", {"dtype": torch.bfloat16}, marks=pytest.mark.gpu),
        pytest.param(
            "causal",
            {"float8": True, "page_size": 16, "dtype": torch.bfloat16},
            marks=pytest.mark.gpu,
        ),
        pytest.param("drafts", {"dtype": torch.bfloat16}, marks=pytest.mark.gpu),
    ],
)
def test_bits_do_not_depend_on_who_merges(
    kind: str, options: dict, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts on, before and behind the ends of splits, the block's own keys across them."""
    arguments = attention_inputs(
        kind, [0, 32, 33, 58, 63, 112], triton_device,
        heads=(3, 1), block=11, groups=(2, 4), capacity=176, **options,
    )  # fmt: skip
    arguments["q"] *= 3
    answers = iter([False, True])
    monkeypatch.setattr(attention, "_one_program_walks", lambda *_: next(answers))
    with forced_backend("triton"):
        by_another_program, by_itself = (block_attention(**arguments) for _ in range(2))
    assert not list(answers), "the launcher did not ask"
    assert_same(by_itself, by_another_program)


# --- where splits lie


def test_splits_grow_at_a_position_and_leave_no_key_out() -> None:
    sizes = (64, 2, 96)
    begins = [attention._split_begin.fn(split, *sizes) for split in range(6)]
    assert begins == [0, 64, 128, 224, 320, 416]
    for keys in range(417):
        assert attention._splits_of.fn(keys, *sizes) == sum(begin < keys for begin in begins)


@pytest.mark.parametrize(("context", "splits"), [(8192, 16), (8193, 17), (131072, 76)])
def test_long_contexts_have_few_splits(context: int, splits: int) -> None:
    entry = launch.read_table(launch.FOLDER / "sm_90.json")["block_attention"][2][128]
    near = entry.far_from // entry.split_keys
    sizes = (entry.split_keys, near, entry.far_split_keys)
    assert attention._splits_of.fn(context, *sizes) == splits


# --- the torch backend, whose matrix products and sums are a library's


@pytest.mark.parametrize(
    ("heads", "head_dim", "threads", "block"),
    [
        ((2, 1), 16, 1, 256),
        ((2, 1), 16, 2, 64),
        ((8, 8), 64, 1, 256),
        ((16, 2), 32, 1, 256),
        ((32, 8), 128, 1, 256),
        pytest.param((8, 8), 64, 2, 64, marks=pytest.mark.full),
        pytest.param((32, 8), 128, 2, 64, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_torch_rows_do_not_depend_on_the_block(
    heads: tuple[int, int], head_dim: int, threads: int, block: int
) -> None:
    options = {"block": block, "heads": heads, "head_dim": head_dim}
    causal = Causal(attention_inputs("causal", [300], "cpu", **options), "torch", 32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = causal.run()
        for rows, first in ((1, 0), (1, 17), (8, 5), (32, 31), (1, 84), (8, 83), (32, 224)):
            if first + rows > block:
                break
            alone = part(causal.arguments, first, rows)
            for arguments in (alone, causal.in_pages(alone)):
                what = f"of {rows} rows from {first}"
                assert_same(causal.run(arguments), rows_of(whole, first, rows), what)
    finally:
        torch.set_num_threads(before)


def test_fast_torch_rows_do_depend_on_the_block() -> None:
    """What the invariant numerics are for, and that these tests can see it."""
    options = {"block": 32, "heads": (4, 1), "head_dim": 64}
    causal = Causal(attention_inputs("causal", [900], "cpu", **options), "torch", 0)
    whole, _ = causal.run(numerics="fast")
    one_by_one = (part(causal.arguments, row, 1) for row in range(32))
    alone = torch.cat([causal.run(row, numerics="fast")[0] for row in one_by_one], 1)
    assert not torch.equal(alone, whole)
    torch.testing.assert_close(alone, whole)
