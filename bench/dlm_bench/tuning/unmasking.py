"""What is searched for the ops that decide about logits: `confidence` and `remask_scatter`."""

from collections.abc import Callable

import torch
from torch import Tensor

from dlm_kernels import BlockState, Rule, confidence, launch, remask_scatter

from ..cases import THRESHOLD, restore
from .inputs import Random, Sizes, numbers
from .space import Call, Series, Space


def confidence_space(sizes: Sizes) -> Space:
    vocab = sizes.config.vocab_size

    def series(
        name: str, rows: tuple[int, ...], itemsize: int, *, timed: bool = True, **options: bool
    ) -> Series:
        def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
            logits = Random(device, sizes.dtypes[itemsize])(most, vocab) * 3

            def call(rows: int, numerics: str) -> Call:
                def run() -> tuple[Tensor, ...]:
                    return numbers(confidence(logits[:rows], **options))

                return Call(run, run)

            return call

        return Series(name, rows, build, timed)

    return Space(
        "confidence",
        launch.CONFIDENCE,
        (),
        (
            series("16 bits", (sizes.main, sizes.rows[-1]), 2),
            series("32 bits", (sizes.main,), 4),
            series("all statistics", (sizes.main,), 2, timed=False, entropy=True, margin=True),
        ),
        fields={
            "chunk": (4096, 8192, 16384, 32768),
            "num_warps": (2, 4, 8),
            "num_stages": (1, 2, 3, 4, 5, 6),
        },
        legal=lambda entry: entry.chunk % (32 * entry.num_warps) == 0,
    )


def remask_space(block: int, sizes: Sizes) -> Space:
    ids = {"mask_id": sizes.config.mask_token_id, "eos_id": sizes.config.eos_token_id}

    def build(device: torch.device, most: int) -> Callable[[int, str], Call]:
        shape = (most, block)
        tokens = torch.randint(200, 1000, shape, dtype=torch.int32, device=device)
        candidate = tokens.flip(1).contiguous()
        tokens[torch.rand(shape, device=device) < 0.5] = ids["mask_id"]
        surety, rule = torch.rand(shape, device=device), Rule(threshold=THRESHOLD)

        def call(batch: int, numerics: str) -> Call:
            state = BlockState.start(tokens[:batch].clone(), ids["mask_id"])
            start = [each.clone() for each in state]

            def run() -> tuple[Tensor, ...]:
                remask_scatter(state, candidate[:batch], surety[:batch], rule, **ids)
                return tuple(state)

            return Call(run, run, reset=lambda: restore(state, start))

        return call

    return Space(
        "remask_scatter",
        launch.REMASK_SCATTER,
        (block,),
        (Series(f"block {block}", sizes.batches, build),),
        fields={"compare": (8, 16, 32, 64), "num_warps": (1, 2, 4, 8)},
        legal=lambda entry: entry.compare <= block,
    )
