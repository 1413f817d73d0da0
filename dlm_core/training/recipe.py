"""What a training run is made of: everything that its result depends on, but for the device."""

from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..config import ModelConfig, RopeConfig
from ..json_values import check_count, check_number, read_object
from ..tasks import TASKS
from .tokenizer import BOS_ID, EOS_ID, MASK_ID, SMALLEST_VOCABULARY


@dataclass(frozen=True)
class Recipe:
    """One training run.

    model: sizes, special ids and the dtype that the weights are shipped in.
    seed: of the weights and of the data.
    ar_steps, joint_steps, draft_steps: steps of the three stages, in this order.
    tokens_per_step: of both streams, on all devices together; row_length: of one packed row.
    text_share, task_weights: of the data; see `Mixture`. The draft stage reads tasks alone.
    all_masked: of the noise of the joint stage; see `Masking`.
    learning_rate: the peak of AdamW, for the embedding, the head and the norms.
    matrix_learning_rate, weight_decay: the peak and the decay of Muon, for the layers' matrices.
    draft_learning_rate: the peak of AdamW, for the draft LoRA.
    warmup, decay_share: rates rise over so many steps, and fall to zero over this share of them.
    max_gradient_norm: gradients are scaled down to it.
    ema_decay: of the running mean of the weights, which is what is shipped.
    draft_rank, draft_alpha: of the LoRA; its update is scaled by alpha / rank.
    save_every: steps from one resumable state to the next.
    """

    model: ModelConfig
    seed: int
    ar_steps: int
    joint_steps: int
    draft_steps: int
    tokens_per_step: int
    row_length: int
    text_share: float = 0.02
    task_weights: dict[str, float] = field(default_factory=dict)
    all_masked: float = 0.0
    learning_rate: float = 3e-3
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.05
    draft_learning_rate: float = 2e-3
    warmup: int = 100
    decay_share: float = 0.4
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.998
    draft_rank: int = 16
    draft_alpha: int = 64
    save_every: int = 100

    def __post_init__(self) -> None:
        special = {"mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "bos_token_id": BOS_ID}
        for key, id in special.items():
            if getattr(self.model, key) != id:
                raise ValueError(
                    f"model.{key} is {getattr(self.model, key)}; the tokenizer makes it {id}"
                )
        check_count("model.vocab_size", self.model.vocab_size, SMALLEST_VOCABULARY)
        check_count("seed", self.seed, 0, 2**63 - 1)
        for key in _COUNTS:
            check_count(key, getattr(self, key))
        for key in _POSITIVE:
            check_number(key, getattr(self, key), above=0)
        for key in ("weight_decay", "ema_decay", "text_share", "all_masked"):
            check_number(key, getattr(self, key), at_least=0)
        for key in ("decay_share", "ema_decay", "text_share", "all_masked"):
            if getattr(self, key) > 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at most 1")
        if not isinstance(self.task_weights, dict):
            raise TypeError(f"task_weights is {self.task_weights!r}; it must be an object")
        if unknown := sorted(set(self.task_weights) - set(TASKS)):
            raise ValueError(f"task_weights names {unknown[0]!r}, which is no task")
        for task, weight in self.task_weights.items():
            check_number(f"task_weights.{task}", weight, at_least=0)
        if not any(self.task_weights.get(task, 1) for task in TASKS):
            raise ValueError("task_weights is 0 for every task; one at least must be above")

    def to_dict(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return {**asdict(self), "model": self.model.to_dict()}

    @classmethod
    def from_json(cls, path: str | Path) -> "Recipe":
        """From a JSON object of these fields, `model` as in a config.json, or one that holds it
        under `recipe`, as a training.json does; an error names the file.

        ValueError, TypeError: a key is missing or unknown, or a value does not fit.
        """
        values = read_object(path)
        values = values.get("recipe", values)
        if not isinstance(values, dict):
            raise ValueError(f"{path}: recipe is {values!r}; it must be an object")
        if unknown := sorted(set(values) - {each.name for each in fields(cls)}):
            raise ValueError(f"{path}: {unknown[0]} is no field of a recipe")
        needed = {
            each.name
            for each in fields(cls)
            if each.default is MISSING and each.default_factory is MISSING
        }
        if missing := sorted(needed - set(values)):
            raise ValueError(f"{path}: {missing[0]} is missing")
        model = values.pop("model")
        if not isinstance(model, dict):
            raise ValueError(f"{path}: model is {model!r}; it must be an object")
        try:
            return cls(**values, model=ModelConfig.from_dict(model))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from None


_COUNTS = (
    "ar_steps",
    "joint_steps",
    "draft_steps",
    "tokens_per_step",
    "row_length",
    "warmup",
    "draft_rank",
    "draft_alpha",
    "save_every",
)
_POSITIVE = (
    "learning_rate",
    "matrix_learning_rate",
    "draft_learning_rate",
    "decay_share",
    "max_gradient_norm",
)

SMALL = Recipe(
    model=ModelConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
        # One factor, so that YaRN changes nothing.
        rope=RopeConfig(
            rope_theta=1e4,
            factor=1.0,
            original_max_position_embeddings=2048,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
            llama_4_scaling_beta=0.1,
        ),
        mask_token_id=MASK_ID,
        eos_token_id=EOS_ID,
        bos_token_id=BOS_ID,
        block_size=32,
        torch_dtype="bfloat16",
    ),
    seed=0,
    ar_steps=1800,
    joint_steps=9800,
    draft_steps=500,
    tokens_per_step=3000,
    row_length=192,
    all_masked=0.2,
    # Those that take longest to learn come more often.
    task_weights={
        "add": 1.5,
        "multiply": 1.5,
        "sort": 1.5,
        "lookup": 2.0,
        "record": 1.5,
        "reverse": 0.6,
        "replace": 0.6,
        "repeat": 0.4,
        "close": 0.6,
        "python": 0.6,
    },
)
