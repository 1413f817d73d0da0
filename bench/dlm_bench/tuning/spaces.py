"""What is searched in one architecture's launch table."""

from dlm_core import ModelConfig
from dlm_kernels import launch

from .attention import attention_space
from .epilogues import gated_silu_space, residual_norm_space, rope_space
from .inputs import Sizes
from .products import linear_space, lm_head_space
from .space import Space
from .unmasking import confidence_space, remask_space


def spaces(arch: str, processors: int, sizes: Sizes) -> list[Space]:
    """One for every entry, the most valuable first.

    processors: SMs of the device; numbers of programs are multiples of it.
    """
    found = [
        *(linear_space(key, sizes, arch, processors) for key in launch.LINEAR[arch]),
        *(lm_head_space(key, sizes, arch) for key in launch.LM_HEAD[arch]),
        *(
            attention_space(itemsize, head_dim, sizes, arch)
            for itemsize, entries in launch.BLOCK_ATTENTION[arch].items()
            for head_dim in entries
        ),
        confidence_space(sizes),
        *(remask_space(block, sizes) for block in launch.REMASK_SCATTER[arch]),
        *(
            residual_norm_space(longest, sizes, launch.RESIDUAL_NORM[arch])
            for longest in launch.RESIDUAL_NORM[arch]
        ),
        gated_silu_space(sizes),
        rope_space(sizes),
    ]
    ranks = {name: rank for rank, name in enumerate(_most_valuable(arch, sizes.config))}
    return sorted(found, key=lambda space: ranks.get(space.name, len(ranks)))


def _most_valuable(arch: str, config: ModelConfig) -> list[str]:
    """The entries that a step in 16 bits launches with, by what they are worth to it."""

    def serving(entries: dict[int, object], size: int) -> int:
        return min(key for key in entries if key >= size)

    head_dim = serving(launch.BLOCK_ATTENTION[arch][2], config.head_dim)
    return [
        "linear 2",
        "lm_head_confidence 2",
        f"block_attention 2 {head_dim}",
        "confidence",
        "linear fp8",
        "linear int8",
        "linear int4",
        f"remask_scatter {serving(launch.REMASK_SCATTER[arch], config.block_size)}",
        f"residual_norm {serving(launch.RESIDUAL_NORM[arch], config.hidden_size)}",
        "gated_silu",
        "rope_kv_write",
    ]
