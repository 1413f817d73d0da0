"""The shape of a model, as its checkpoint's config.json states it.

Every key of the file is accounted for: it is a field here, or it must hold the one value the model
supports, or it is on the list of keys that do not touch inference. Anything else is an error, so
that no setting that changes the math passes unseen.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dlm_kernels.validate import HEAD_DIMS, MAX_BLOCK

from .json_values import check_count, check_number, read_object

# Keys with one supported value; a file may leave them out, but for `model_type`.
_ONLY_VALUE = {
    "model_type": "nemotron_labs_diffusion",
    "dlm_paradigm": "bidirectional",
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
_ONLY_ROPE_VALUE = {"rope_type": "yarn", "truncate": True}

# Keys of the published files that concern training, other libraries or provenance.
IGNORED_KEYS = frozenset(
    {
        "ar_loss_weight",
        "architectures",
        "attn_implementation",
        "auto_map",
        "dlm_loss_weight",
        "dp_varying_mask_ratio",
        "initializer_range",
        "transformers_version",
        "use_cache",
    }
)

STORED_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding with YaRN frequencies and a query scale that grows with position.

    rope_theta: base of the frequencies.
    factor: how far positions are interpolated beyond the original context.
    original_max_position_embeddings: the original context in tokens.
    beta_fast, beta_slow: rotations over the original context above which a frequency is kept, and
        below which it is interpolated fully.
    mscale, mscale_all_dim: their ratio of 0.1 * mscale * ln(factor) + 1 scales cos and sin.
    llama_4_scaling_beta: queries are scaled by 1 + beta * ln(1 + floor(position / original)).
    """

    rope_theta: float
    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    llama_4_scaling_beta: float

    def __post_init__(self) -> None:
        check_count("original_max_position_embeddings", self.original_max_position_embeddings)
        check_number("rope_theta", self.rope_theta, above=1)
        check_number("factor", self.factor, at_least=1)
        check_number("beta_slow", self.beta_slow, above=0)
        check_number("beta_fast", self.beta_fast, above=self.beta_slow)
        check_number("mscale", self.mscale, above=0)
        check_number("mscale_all_dim", self.mscale_all_dim, above=0)
        check_number("llama_4_scaling_beta", self.llama_4_scaling_beta, at_least=0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RopeConfig":
        """From the `rope_parameters` of a config.json; errors as `ModelConfig.from_dict`."""
        names = {field.name for field in fields(cls)}
        return cls(**_accounted(values, names, _ONLY_ROPE_VALUE, required={"rope_type"}))


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and special ids of one model; field names are the keys of config.json.

    `rope` is `rope_parameters` there, and `torch_dtype` names the dtype the weights are stored in.
    Ill-formed values raise a ValueError or TypeError that names the key and the value.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    mask_token_id: int
    eos_token_id: int
    bos_token_id: int
    block_size: int
    torch_dtype: str

    def __post_init__(self) -> None:
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        ):
            check_count(key, getattr(self, key))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}; it must be a multiple of"
                f" num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim not in HEAD_DIMS:
            raise ValueError(f"head_dim is {self.head_dim!r}; it must be a power of two, 16 to 256")
        check_number("rms_norm_eps", self.rms_norm_eps, above=0)
        for key in ("mask_token_id", "eos_token_id", "bos_token_id"):
            check_count(key, getattr(self, key), low=0, high=self.vocab_size - 1)
        if self.mask_token_id in (self.eos_token_id, self.bos_token_id):
            raise ValueError(
                f"mask_token_id is {self.mask_token_id}; it must differ from eos_token_id and"
                " bos_token_id"
            )
        check_count("block_size", self.block_size, low=2, high=MAX_BLOCK)
        if not isinstance(self.rope, RopeConfig):
            raise TypeError(f"rope is {self.rope!r}; it must be a RopeConfig")
        if self.torch_dtype not in STORED_DTYPES:
            raise ValueError(
                f"torch_dtype is {self.torch_dtype!r}; it must be one of {', '.join(STORED_DTYPES)}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """From the contents of a config.json.

        A key that is missing, that is neither used nor on `IGNORED_KEYS`, or that asks for math
        the model does not have, is a ValueError naming the key and its value.
        """
        names = {field.name for field in fields(cls)} - {"rope"} | {"rope_parameters"}
        known = {key: value for key, value in values.items() if key not in IGNORED_KEYS}
        used = _accounted(known, names, _ONLY_VALUE, required={"model_type"})
        rope = used.pop("rope_parameters")
        if not isinstance(rope, Mapping):
            raise TypeError(f"rope_parameters is {rope!r}; it must be an object")
        return cls(rope=RopeConfig.from_dict(rope), **used)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a config.json, as `from_dict` reads them."""
        values = asdict(self)
        rope = values.pop("rope")
        return {
            "architectures": ["NemotronLabsDiffusionModel"],
            **_ONLY_VALUE,
            **values,
            "rope_parameters": {"rope_type": _ONLY_ROPE_VALUE["rope_type"], **rope},
        }

    @classmethod
    def from_json(cls, path: str | Path) -> "ModelConfig":
        """From a config.json file; an error names the file."""
        values = read_object(path)
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from None


def _accounted(
    values: Mapping[str, Any], used: set[str], only: Mapping[str, Any], required: set[str]
) -> dict[str, Any]:
    """The `used` keys of `values`, once every other key is known to hold its only value."""
    for key in sorted((used | required) - values.keys()):
        raise ValueError(f"{key} is missing")
    for key, value in values.items():
        if key in only and value != only[key]:
            raise ValueError(f"{key} is {value!r}; the only supported value is {only[key]!r}")
        if key not in only and key not in used:
            raise ValueError(f"{key} is not a known key (it holds {value!r})")
    return {key: values[key] for key in used}


_8B = ModelConfig(
    vocab_size=131072,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=34,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    max_position_embeddings=262144,
    rope=RopeConfig(
        rope_theta=1e6,
        factor=16.0,
        original_max_position_embeddings=16384,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        llama_4_scaling_beta=0.1,
    ),
    mask_token_id=100,
    eos_token_id=11,
    bos_token_id=1,
    block_size=32,
    torch_dtype="bfloat16",
)

# The published Nemotron-Labs Diffusion sizes, and one that runs anywhere in seconds.
PRESETS = {
    "3b": replace(_8B, hidden_size=3072, num_hidden_layers=26, intermediate_size=9216),
    "8b": _8B,
    "14b": replace(
        _8B,
        hidden_size=5120,
        num_hidden_layers=40,
        intermediate_size=16384,
        rope=replace(_8B.rope, rope_theta=1e9),
    ),
    "tiny": replace(
        _8B,
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        rope=replace(_8B.rope, rope_theta=1e4, original_max_position_embeddings=256),
        torch_dtype="float32",
    ),
}
