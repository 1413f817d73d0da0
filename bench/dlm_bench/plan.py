"""Which forwards of which models are measured, and in what order: what says most comes first.

A batch is looked into stage by stage at one context; contexts, blocks and weights in few bits are
whole forwards. A run cut short lacks the end of the list.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from dlm_core import PRESETS, ModelConfig
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, QUADRATIC, VERIFY, Forward
from dlm_roofline.step_cost import step_cost

# The published shape made small enough for 2 cores. One has the same vocabulary, block and query
# heads a KV head; 188 M parameters.
HOST_MODEL = replace(
    PRESETS["8b"],
    hidden_size=512,
    intermediate_size=1792,
    num_hidden_layers=16,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    torch_dtype="float32",
)
# The other is small enough for a whole grid; 30 M parameters, of which a forward reads 22 M.
GRID_MODEL = replace(HOST_MODEL, num_hidden_layers=4, vocab_size=16384)

BATCHES = (1, 64, 8, 4, 16, 2, 32)
CONTEXT = {"cuda": 1024, "cpu": 512}
KINDS = (DENOISE, DECODE, DRAFT, VERIFY)


@dataclass(frozen=True)
class Planned:
    """A forward to measure whole.

    stages: each of its stages alone too. peers: stages beside plain torch, and the whole in `fast`
        numerics.
    """

    forward: Forward
    stages: bool = False
    peers: bool = False

    def rows(self, config: ModelConfig) -> int:
        """Rows of the record that it makes."""
        return 1 + self.stages * len(step_cost(config, self.forward))


def small_plan(config: ModelConfig, dtype: str) -> list[Planned]:
    """A few denoising steps of a host's model in detail, and AR decoding."""
    at = partial(_forward, config, dtype, context=CONTEXT["cpu"])
    detailed = [Planned(at(DENOISE, batch), stages=True, peers=True) for batch in (1, 4)]
    return detailed + [Planned(at(DECODE, batch)) for batch in (1, 4)]


def quick_plan(config: ModelConfig, dtype: str) -> list[Planned]:
    """One forward of each kind."""
    at = partial(_forward, config, dtype, batch=1, context=CONTEXT["cpu"])
    found = [Planned(at(kind), stages=True, peers=kind == DENOISE) for kind in KINDS]
    return [*found, Planned(at(QUADRATIC, k=4), stages=True)]


def host_plan(config: ModelConfig, dtype: str) -> list[Planned]:
    """What 2 cores get through in eight minutes; the slowest batches come last."""
    at = partial(_forward, config, dtype)
    near = partial(at, context=CONTEXT["cpu"])

    def by_stages(batches: tuple[int, ...]) -> list[Planned]:
        return [Planned(near(kind, b), stages=True) for b, kind in product(batches, KINDS)]

    contexts = [
        Planned(at(kind, batch, context))
        for context, batch, kind in product((4096, 128, 2048), (1, 16, 4), (DENOISE, DECODE))
    ]
    return _once(
        *by_stages((1, 16, 4)),
        *(Planned(near(QUADRATIC, b, k=k), stages=True) for b, k in product((1, 4, 16), (8, 4))),
        *contexts,
        *_other_blocks(near, batches=(1, 16)),
        *_other_weights(near, ("int8", "int4"), batches=(1, 8)),
        *by_stages((8, 2, 64, 32)),
    )


def gpu_plan(config: ModelConfig, dtype: str) -> list[Planned]:
    """The whole grid of a GPU."""
    at = partial(_forward, config, dtype)
    near = partial(at, context=CONTEXT["cuda"])

    def contexts(*sizes: int) -> list[Planned]:
        return [
            Planned(at(kind, b, context)) for context, b, kind in product(sizes, BATCHES, KINDS)
        ]

    return _once(
        *(
            Planned(near(kind, b), stages=True, peers=kind == DENOISE)
            for b, kind in product(BATCHES, KINDS)
        ),
        *(Planned(near(QUADRATIC, b, k=k), stages=True) for b, k in product(BATCHES, (10, 16))),
        *contexts(16384, 4096),
        *_other_blocks(near, BATCHES),
        *(
            Planned(at(kind, b, 16384, float8_cache=True))
            for b, kind in product((1, 8, 64), (DENOISE, DECODE))
        ),
        *contexts(65536, 131072),
        # The only ones that need another model, so they come last.
        *_other_weights(near, ("fp8", "int8", "int4"), batches=(1, 8, 64)),
    )


def _once(*planned: Planned) -> list[Planned]:
    """Without the forwards that a model of few positions, or of another block, has twice."""
    first: dict[Forward, Planned] = {}
    for each in planned:
        first.setdefault(each.forward, each)
    return list(first.values())


def _other_blocks(near, batches: tuple[int, ...]) -> list[Planned]:
    return [
        Planned(near(kind, b, block=block))
        for block, b, kind in product((8, 16), batches, (DENOISE, DRAFT, VERIFY))
    ]


def _other_weights(near, weights: tuple[str, ...], batches: tuple[int, ...]) -> list[Planned]:
    return [
        Planned(near(kind, b, weights=each))
        for each, b, kind in product(weights, batches, (DENOISE, DECODE))
    ]


def _forward(
    config: ModelConfig,
    dtype: str,
    kind: str,
    batch: int,
    context: int,
    *,
    block: int | None = None,
    k: int | None = None,
    **options: str | bool,
) -> Forward:
    """A forward in the model's own block where none is given, behind what its positions allow."""
    size = {DECODE: 1, QUADRATIC: k and k * (k + 1)}.get(kind, block or config.block_size)
    context = min(context, config.max_position_embeddings - size)
    return Forward(kind, batch, size, context, dtype, **options)
