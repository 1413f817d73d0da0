"""The public entry: checks a request, then runs the loop of its mode."""

import math
import operator
from collections.abc import Callable, Sequence

from dlm_kernels.validate import MAX_BLOCK, check_int

from ..config import ModelConfig
from ..model import Model
from .autoregressive import decode_autoregressive
from .diffusion import decode_diffusion
from .result import Generation, StepEvent
from .self_speculation import decode_linear_spec

# Each mode with the arguments that belong to it.
MODES = {
    "autoregressive": (),
    "diffusion": ("block_length", "threshold", "steps", "on_step"),
    "linear_spec": ("block_length", "lora"),
}
DEFAULT_THRESHOLD = 0.9


def generate(
    model: Model,
    prompt: Sequence[int],
    max_new_tokens: int,
    mode: str = "autoregressive",
    block_length: int | None = None,
    threshold: float | None = None,
    steps: int | None = None,
    lora: bool | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
) -> Generation:
    """Generate greedily behind one prompt. The mask id is never chosen, in any mode.

    Args:
        model: from `load_model` or `random_model`.
        prompt: token ids, at least one; the mask id is not allowed.
        max_new_tokens: at most so many tokens come back; an EOS ends them sooner.
        mode: "autoregressive", one token a forward; "diffusion", blocks of masks denoised in a few
            forwards; "linear_spec", drafts by diffusion that a causal forward verifies, which gives
            the tokens of "autoregressive" in fewer forwards, up to the rounding of matrix products
            that torch may run differently for one token and for a block.
        block_length: diffusion and linear_spec: tokens a block, 2 to 256; by default the config's
            block_size. Blocks are always whole: what goes beyond max_new_tokens is cut.
        threshold: diffusion, in [0, 1]. A step commits every masked position whose candidate is at
            least this likely, and always the likeliest. 0.9 if neither this nor `steps` is given.
        steps: diffusion, in [1, block_length - 1]. A block's masks are split evenly over so many
            steps, the earlier ones taking the remainder; excludes `threshold`.
        lora: linear_spec: draft with the checkpoint's draft LoRA. By default, where it has one.
        on_step: diffusion: called after each denoising step, which then reads the block back.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it and its value.
        dlm_kernels.DeviceError: the logits held NaN or nothing to choose.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    config = model.config
    prompt = _checked_prompt(prompt, config)
    check_int("max_new_tokens", max_new_tokens, 1, config.max_position_embeddings)
    given = {
        "block_length": block_length,
        "threshold": threshold,
        "steps": steps,
        "lora": lora,
        "on_step": on_step,
    }
    for name, value in given.items():
        if value is not None and name not in MODES[mode]:
            modes = " or ".join(repr(m) for m, names in MODES.items() if name in names)
            raise ValueError(f"{name} is {value!r}; it needs mode={modes}")
    if on_step is not None and not callable(on_step):
        raise TypeError(f"on_step is {on_step!r}; it must be callable")
    if mode == "autoregressive":
        _check_context(len(prompt), max_new_tokens, max_new_tokens, config)
        return decode_autoregressive(model, prompt, max_new_tokens)

    if block_length is None:
        block_length = config.block_size
    check_int("block_length", block_length, 2, MAX_BLOCK)
    if mode == "linear_spec":
        if lora is None:
            lora = model.has_draft_lora
        if lora and not model.has_draft_lora:
            raise ValueError("lora is True; the model's checkpoint held no draft LoRA")
        last_block = max_new_tokens - 1 + block_length
        _check_context(len(prompt), max_new_tokens, last_block, config)
        return decode_linear_spec(model, prompt, max_new_tokens, block_length, lora)

    if steps is not None:
        if threshold is not None:
            raise ValueError(f"threshold is {threshold} beside steps={steps}; give one of the two")
        check_int("steps", steps, 1, block_length - 1)
    else:
        threshold = _checked_threshold(DEFAULT_THRESHOLD if threshold is None else threshold)
    whole_blocks = math.ceil(max_new_tokens / block_length) * block_length
    _check_context(len(prompt), max_new_tokens, whole_blocks, config)
    return decode_diffusion(model, prompt, max_new_tokens, block_length, threshold, steps, on_step)


def _checked_prompt(prompt: Sequence[int], config: ModelConfig) -> list[int]:
    try:
        ids = [operator.index(token) for token in prompt]
    except TypeError:
        raise TypeError(f"prompt is {prompt!r}; it must be a sequence of integer ids") from None
    if not ids:
        raise ValueError("prompt is empty; it must hold at least one token id")
    for token in ids:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"prompt holds {token}; ids must be in [0, {config.vocab_size})")
        if token == config.mask_token_id:
            raise ValueError(f"prompt holds {token}, the mask id, which stands for no token")
    return ids


def _checked_threshold(threshold: float) -> float:
    if not isinstance(threshold, int | float) or isinstance(threshold, bool):
        raise TypeError(f"threshold is {threshold!r}; it must be a number")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be in [0, 1]")
    return threshold


def _check_context(prompt: int, max_new_tokens: int, new: int, config: ModelConfig) -> None:
    if prompt + new > config.max_position_embeddings:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}; behind a prompt of {prompt} tokens that takes"
            f" {prompt + new} positions, and the model has {config.max_position_embeddings}"
        )
