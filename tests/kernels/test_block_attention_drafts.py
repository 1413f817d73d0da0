"""block_attention with draft groups: each row sees its keys; slot 0 has a causal row's bits."""

from typing import NamedTuple

import pytest
import torch
from numeric import assert_close_to_reference, assert_same_bits, forced_backend, unchanged
from torch import Tensor

from dlm_kernels import block_attention, launch

NAN = float("nan")


class Drafts(NamedTuple):
    """Inputs in which every key and value that no row sees is NaN."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    context_lens: Tensor
    k: Tensor
    v: Tensor
    groups: int
    length: int

    @property
    def lead(self) -> int:
        return self.q.shape[1] - self.groups * self.length

    @property
    def cached_rows(self) -> list[int]:
        """Rows of the block whose keys lie in the cache: those of a causal call."""
        return [*range(self.lead), *range(self.lead, self.q.shape[1], self.length)]

    def run(self, **options) -> tuple[Tensor, Tensor]:
        return block_attention(
            *self[:6], draft_groups=(self.groups, self.length), return_lse=True, **options
        )

    def exact(self) -> tuple[Tensor, Tensor]:
        """(out, lse) in float64, each row over the keys that the definition gives it."""
        batch, block, query_heads, head_dim = self.q.shape
        share = query_heads // self.k.shape[2]
        out = torch.empty(self.q.shape, dtype=torch.float64)
        lse = torch.empty(out.shape[:3], dtype=torch.float64)
        tensors = (self.q, self.k_cache, self.v_cache, self.k, self.v)
        q, k_cache, v_cache, k, v = (x.double().cpu() for x in tensors)
        for b, context in enumerate(self.context_lens.tolist()):
            for row in range(block):
                own, fresh = row, []
                if row >= self.lead:
                    group = (row - self.lead) // self.length
                    first = self.lead + group * self.length
                    own = self.lead + group
                    fresh = list(range(first + 1, first + self.length)) if row > first else []
                keys = torch.cat([k_cache[b, : context + own + 1], k[b, fresh]])
                values = torch.cat([v_cache[b, : context + own + 1], v[b, fresh]])
                keys, values = (x.repeat_interleave(share, 1) for x in (keys, values))
                scores = torch.einsum("hd,nhd->hn", q[b, row], keys) * head_dim**-0.5
                lse[b, row] = scores.logsumexp(-1)
                out[b, row] = torch.einsum("hn,nhd->hd", scores.softmax(-1), values)
        return out, lse


def drafts(
    groups: int,
    length: int,
    lead: int,
    contexts: list[int],
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    capacity: int | None = None,
) -> Drafts:
    generator = torch.Generator().manual_seed(groups * length + lead)
    query_heads, kv_heads = heads
    batch, block = len(contexts), lead + groups * length

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    q = randn(batch, query_heads, block, head_dim).transpose(1, 2)
    capacity = capacity or max(contexts) + lead + groups
    k_cache, v_cache = (
        torch.full((batch, capacity, kv_heads, head_dim), NAN, dtype=dtype, device=device)
        for _ in range(2)
    )
    for b, context in enumerate(contexts):
        for cache in (k_cache, v_cache):
            cache[b, : context + lead + groups] = randn(context + lead + groups, kv_heads, head_dim)
    k, v = randn(2, batch, block, kv_heads, head_dim)
    lengths = torch.tensor(contexts, dtype=torch.int32, device=device)
    case = Drafts(q, k_cache, v_cache, lengths, k, v, groups, length)
    k[:, case.cached_rows] = v[:, case.cached_rows] = NAN
    return case


# A tile holds 32 to 128 query rows (positions x group) and 32 to 128 keys, a split 512 or 1024.
SHAPES = [
    pytest.param(1, 9, 6, [0, 5, 31], (4, 2), 16, id="first-pass"),
    pytest.param(3, 4, 0, [0, 30, 33], (6, 2), 32, id="groups-within-a-tile"),
    pytest.param(4, 2, 1, [7], (3, 1), 16, id="one-mask-a-group"),
    pytest.param(3, 41, 2, [60, 0], (2, 1), 16, id="groups-across-row-tiles"),
    pytest.param(1, 140, 0, [40], (2, 2), 64, id="masks-across-key-tiles"),
    pytest.param(5, 3, 10, [1011, 4], (2, 1), 16, id="groups-across-a-split"),
    pytest.param(2, 3, 10, [1020, 2040], (3, 1), 16, id="causal-rows-across-a-split"),
    pytest.param(16, 17, 0, [1015], (2, 1), 16, id="sixteen-drafts"),
]


@pytest.mark.parametrize("numerics", ["invariant", "fast"])
@pytest.mark.parametrize(("groups", "length", "lead", "contexts", "heads", "head_dim"), SHAPES)
def test_matches_the_definition(
    groups: int,
    length: int,
    lead: int,
    contexts: list[int],
    heads: tuple[int, int],
    head_dim: int,
    numerics: str,
    dtype: torch.dtype,
    triton_device: str,
) -> None:
    case = drafts(groups, length, lead, contexts, heads, head_dim, dtype, triton_device)
    tensors = dict(zip(Drafts._fields[:6], case[:6], strict=True))
    with unchanged(**tensors), forced_backend("triton"):
        out, lse = case.run(numerics=numerics)
    with forced_backend("torch"):
        same_dtype, same_dtype_lse = case.run(numerics="fast")
    exact, exact_lse = case.exact()
    floor = {torch.float32: 2e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}[dtype]
    assert_close_to_reference(out, same_dtype, exact, floor=floor, what="out")
    assert_close_to_reference(lse, same_dtype_lse, exact_lse, floor=4e-6, what="lse")


@pytest.mark.parametrize("numerics", ["invariant", "fast"])
@pytest.mark.parametrize("shape", [(3, 4, 0, [0, 130]), (1, 9, 6, [0, 5]), (2, 18, 3, [120])])
def test_every_backend_matches_the_definition(
    shape: tuple, numerics: str, backend: str, op_device: str
) -> None:
    case = drafts(*shape, (4, 2), 16, torch.float32, op_device, capacity=200)
    out, lse = case.run(numerics=numerics)
    exact, exact_lse = case.exact()
    torch.testing.assert_close(out.cpu().double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.cpu().double(), exact_lse, atol=1e-5, rtol=1e-5)


BITWISE = [
    pytest.param(3, 9, 0, [0, 126], id="a-cycle"),
    pytest.param(1, 9, 24, [3, 110], id="first-pass"),
    pytest.param(5, 3, 10, [1011, 1020], id="across-a-split"),
    pytest.param(16, 17, 0, [250], id="sixteen-drafts"),
]


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize(("groups", "length", "lead", "contexts"), BITWISE)
def test_causal_rows_and_slot_0_have_the_bits_of_a_causal_call(
    groups: int,
    length: int,
    lead: int,
    contexts: list[int],
    backend: str,
    dtype: torch.dtype,
    request: pytest.FixtureRequest,
) -> None:
    device = request.getfixturevalue("triton_device") if backend == "triton" else "cpu"
    check_causal_bits(drafts(groups, length, lead, contexts, (4, 2), 16, dtype, device), backend)


@pytest.mark.parametrize("contexts", [[120, 217], [123, 222], [128, 223]])
def test_causal_bits_where_splits_grow(
    contexts: list[int], dtype: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Splits end at 64, 128, 224 and 320."""
    entry = launch.AttentionLaunch(32, 32, 64, 128, 96, num_warps=4, num_stages=2)
    monkeypatch.setattr(launch, "smallest_serving", lambda table, size: entry)
    check_causal_bits(drafts(4, 3, 5, contexts, (4, 2), 16, dtype, triton_device), "triton")


def check_causal_bits(case: Drafts, backend: str) -> None:
    contexts, rows = case.context_lens.tolist(), case.cached_rows
    with forced_backend(backend):
        out, lse = case.run()
        for first, last in ((0, len(rows)), (len(rows) - 1, len(rows)), (len(rows) // 2, -1)):
            together = rows[first:last]
            if not together:
                continue
            causal, causal_lse = block_attention(
                case.q[:, together],
                *case[1:3],
                case.context_lens + first,
                max_context=max(contexts) + first,
                return_lse=True,
            )
            assert_same_bits(out[:, together], causal, f"out of rows {together}")
            assert_same_bits(lse[:, together], causal_lse, f"lse of rows {together}")


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_masks_do_not_depend_on_other_groups_or_the_batch(
    backend: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    device = request.getfixturevalue("triton_device") if backend == "triton" else "cpu"
    case = drafts(3, 40, 7, [1015, 30], (2, 1), 16, dtype, device, capacity=1200)
    with forced_backend(backend):
        out, lse = case.run()
        for b, group in ((0, 2), (1, 1)):
            rows = slice(7 + 40 * group, 7 + 40 * (group + 1))
            one, one_lse = block_attention(
                case.q[b : b + 1, rows],
                *(cache[b : b + 1] for cache in case[1:3]),
                case.context_lens[b : b + 1] + 7 + group,
                *(fresh[b : b + 1, rows] for fresh in case[4:6]),
                draft_groups=(1, 40),
                return_lse=True,
            )
            assert_same_bits(one[0], out[b, rows], f"out of group {group}")
            assert_same_bits(one_lse[0], lse[b, rows], f"lse of group {group}")
