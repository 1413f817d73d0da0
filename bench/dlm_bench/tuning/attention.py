"""What is searched for `block_attention`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import block_attention, launch

from .inputs import PRODUCT_WARPS, Random, Sizes
from .space import Call, Series, Space


def attention_space(itemsize: int, head_dim: int, sizes: Sizes, arch: str) -> Space:
    config, dtype = sizes.config, sizes.dtypes[itemsize]
    query_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    block, page = config.block_size, 16

    def series(
        context: int, batches: tuple[int, ...], form: str = "", *, timed: bool = True
    ) -> Series:
        def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
            random = Random(device, dtype)
            q = random(most, block, query_heads, head_dim)
            k, v = (random(most, block, kv_heads, head_dim) for _ in range(2))
            capacity = -(-(context + block) // page) * page
            cached = [random(most, capacity, kv_heads, head_dim) for _ in range(2)]
            lengths = torch.full((most,), context, dtype=torch.int32, device=device)
            options: dict[str, Any] = {"max_context": context}
            table = None
            if form == "paged":
                cached = [each.view(-1, page, kv_heads, head_dim) for each in cached]
                pages = torch.arange(most * capacity // page, dtype=torch.int32, device=device)
                table = pages.view(most, -1)
            if form == "drafts":
                options["draft_groups"] = (block // 2, 2)
            if form == "float8":
                cached = [each.to(torch.float8_e4m3fn) for each in cached]
                ones = torch.ones(kv_heads, device=device)
                options |= {"k_scale": ones, "v_scale": ones}

            def call(batch: int, numerics: str) -> Call:
                own = () if form == "causal" else (k[:batch], v[:batch])
                cache = cached if form == "paged" else [each[:batch] for each in cached]
                given = options | {"numerics": numerics}
                if table is not None:
                    given["block_table"] = table[:batch]

                def run() -> tuple[Tensor, ...]:
                    return (block_attention(q[:batch], *cache, lengths[:batch], *own, **given),)

                return Call(run, run)

            return call

        return Series(f"context {context} {form}".strip(), batches, build, timed)

    least = min(sizes.contexts)
    forms = ["causal", "paged", "drafts"] + ["float8"] * (itemsize == 2 and arch != "sm_80")
    return Space(
        "block_attention",
        launch.BLOCK_ATTENTION,
        (itemsize, head_dim),
        (
            *(series(*each) for each in sizes.contexts.items()),
            *(series(least + 1, (1, 2), form, timed=False) for form in forms),
        ),
        fields={
            "block_m": (16, 32, 64, 128),
            "block_n": (16, 32, 64, 128),
            "split_keys": (256, 512, 1024, 2048),
            "far_from": (4096, 8192, 16384),
            "far_split_keys": (512, 1024, 2048, 4096),
            "walks": (False, True),
            "num_warps": PRODUCT_WARPS,
            "num_stages": (1, 2, 3, 4, 5),
        },
        legal=lambda entry: (
            entry.split_keys % entry.block_n == 0
            and entry.far_from % entry.split_keys == 0
            and entry.far_split_keys % entry.block_n == 0
            and (entry.block_m + 2 * entry.num_stages * entry.block_n) * head_dim * itemsize
            <= launch.SHARED_MEMORY[arch]
        ),
    )
