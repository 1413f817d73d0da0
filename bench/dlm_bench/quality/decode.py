"""Held-out examples, decoded by one setting, many requests together, and their answers checked."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from dlm_core import Batch, Generation, KVCache, KVScales, Model
from dlm_core.tasks import Example, are_right, heldout
from dlm_kernels.cache_layout import CACHE_DTYPE
from dlm_kernels.validate import MAX_BLOCK

from .settings import Setting

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONCURRENT = 64  # requests that run together; their tokens do not depend on it
PAGE_SIZE = 64
PYTHON = "python"  # the task of Python functions, reported apart


class Passage(NamedTuple):
    """Token ids: a prompt, and the answer to it with its EOS."""

    prompt: list[int]
    answer: list[int]


def sample(per_task: int, seed: int) -> list[Example]:
    """Held-out examples, one of each task in turn: any multiple of the tasks' number is a sample
    with as many of each task, and part of every longer one."""
    drawn = heldout(per_task, seed)
    columns = [drawn[i : i + per_task] for i in range(0, len(drawn), per_task)]
    return [example for row in zip(*columns, strict=True) for example in row]


def passages_of(tokenizer: "Tokenizer", examples: Sequence[Example], eos: int) -> list[Passage]:
    """Prompts as chats, and the right answers to them."""
    prompts = tokenizer.encode_batch([each.prompt for each in examples])
    answers = tokenizer.encode_batch([each.answer for each in examples], add_special_tokens=False)
    pairs = zip(prompts, answers, strict=True)
    return [Passage(prompt.ids, [*answer.ids, eos]) for prompt, answer in pairs]


def after_prompt(
    model: Model, prompt: list[int], room: int, kv_scales: KVScales | None = None
) -> KVCache:
    """A cache that holds a prompt, and has `room` positions after it; in float8 over `kv_scales`,
    else of the model's dtype."""
    dtype = model.dtype if kv_scales is None else CACHE_DTYPE
    how = {"device": model.device, "dtype": dtype, "scales": kv_scales}
    cache = KVCache(model.config, 1, len(prompt) + room, **how)
    for chunk in torch.tensor([prompt], device=model.device).split(MAX_BLOCK, 1):
        model(chunk, cache, causal=True)
        cache.advance(chunk.shape[1])
    return cache


def decode(
    model: Model,
    prompts: Sequence[list[int]],
    setting: Setting,
    *,
    max_new_tokens: int,
    timed: Sequence[int] = (),
    kv_scales: KVScales | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[list[Generation], float]:
    """Decode prompts of token ids greedily.

    Args:
        timed: indices of prompts that are decoded after the others, which so warm up.
        kv_scales: for a cache in float8; see `Batch`.
        on_done: called as each prompt is decoded.

    Returns the generations, in the order of the prompts, and the seconds that those timed took.
    Raises ValueError if the model has no room for a prompt and its answer.
    """
    block = setting.block_length or model.config.block_size
    longest = max(map(len, prompts)) + max_new_tokens + 2 * block
    pages = CONCURRENT * -(-longest // PAGE_SIZE)
    batch = Batch(model, pages=pages, page_size=PAGE_SIZE, kv_scales=kv_scales)
    requests, seconds = {}, 0.0
    for part in (set(range(len(prompts))).difference(timed), timed):
        begin = time.perf_counter()
        # Equal lengths run their prompts as one forward.
        left = iter(sorted(part, key=lambda i: (len(prompts[i]), i)))
        done = 0
        while done < len(part):
            free = CONCURRENT - len(batch.running) - len(batch.waiting)
            for i in itertools.islice(left, free):
                requests[i] = batch.submit(
                    prompts[i], max_new_tokens, setting.mode, **setting.options
                )
            for request in batch.step():
                if request.finished:
                    done += 1
                    on_done()
        seconds = time.perf_counter() - begin
    return [requests[i].generation for i in range(len(prompts))], seconds


def right_ones(
    tokenizer: "Tokenizer", examples: Sequence[Example], generations: Sequence[Generation], eos: int
) -> list[bool]:
    """Whether each answer is right and ends, with an EOS."""
    texts = [tokenizer.decode(each.tokens) for each in generations]
    checked = zip(are_right(examples, texts), generations, strict=True)
    return [right and each.tokens[-1] == eos for right, each in checked]
