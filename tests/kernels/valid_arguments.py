"""Arguments that each op takes; tests spoil one of them and `expect` the error that names it."""

from collections.abc import Callable

import pytest
import torch
from numeric import unchanged

from dlm_kernels import BlockState, Rule, lm_head_partials, new_error_word

MASK, EOS = 9, 2
F64, F16, I64, I32 = torch.float64, torch.float16, torch.int64, torch.int32


def expect(call: Callable, arguments: dict, exception: type[Exception], message: str) -> None:
    """`call` raises exactly this and leaves every tensor argument as it was."""
    values = dict(arguments)
    if isinstance(values.get("state"), BlockState):
        values |= values.pop("state")._asdict()
    tensors = {
        name: value
        for name, value in values.items()
        if isinstance(value, torch.Tensor) and not value.is_meta
    }
    with unchanged(**tensors), pytest.raises(exception, match=message) as raised:
        call(**arguments)
    assert raised.type is exception


def ints(*shape: int, dtype: torch.dtype = I32, value: int = 0) -> torch.Tensor:
    return torch.full(shape, value, dtype=dtype)


def confidence_arguments() -> dict:
    return {
        "logits": torch.zeros(3, 8),
        "tokens": ints(3, value=MASK),
        "mask_id": MASK,
        "banned": ints(2),
        "error": new_error_word("cpu"),
    }


def head_arguments() -> dict:
    return {
        "hidden": torch.zeros(3, 5),
        "weight": torch.zeros(8, 5),
        "tokens": ints(3, value=MASK),
        "mask_id": MASK,
        "banned": ints(2),
    }


def two_shards(**second) -> dict:
    """Arguments of merge_partials, with these fields of the second shard."""
    weight = torch.zeros(8, 5)
    first, last = (
        lm_head_partials(torch.zeros(3, 5), weight[i : i + 4], first_id=i, entropy=True)
        for i in (0, 4)
    )
    return {"partials": [first, last._replace(**second)], "tokens": ints(3), "mask_id": MASK}


def attention_arguments() -> dict:
    """A block of 4 queries of 6 heads over 2 KV heads, in a cache of 20."""
    return {
        "q": torch.zeros(3, 4, 6, 16),
        "k_cache": torch.zeros(3, 20, 2, 16),
        "v_cache": torch.zeros(3, 20, 2, 16),
        "context_lens": ints(3),
        "k": torch.zeros(3, 4, 2, 16),
        "v": torch.zeros(3, 4, 2, 16),
        "error": new_error_word("cpu"),
    }


def pages_of(pages: int = 7, page_size: int = 16, **others) -> dict:
    """The change that puts the cache into pages."""
    pool = torch.zeros(pages, page_size, 2, 16)
    return {"k_cache": pool, "v_cache": pool, "block_table": ints(3, 2)} | others


CAUSAL = {"k": None, "v": None}


def remask_arguments() -> dict:
    return {
        "state": BlockState.start(ints(2, 4, value=MASK), MASK),
        "candidate": ints(2, 4, value=1),
        "confidence": torch.zeros(2, 4),
        "rule": Rule(),
        "mask_id": MASK,
        "eos_id": EOS,
        "error": new_error_word("cpu"),
    }


def state_with(**fields) -> dict:
    return {"state": remask_arguments()["state"]._replace(**fields)}


def rope_arguments() -> dict:
    """4 query heads and 2 KV heads of 16, blocks of 4 behind contexts in a cache of 20."""
    return {
        "qkv": torch.zeros(3, 4, 8 * 16),
        "cos": torch.zeros(3, 4, 8),
        "sin": torch.zeros(3, 4, 8),
        "query_scale": torch.zeros(3, 4),
        "kv_heads": 2,
        "k_cache": torch.zeros(3, 20, 2, 16),
        "v_cache": torch.zeros(3, 20, 2, 16),
        "context_lens": ints(3),
        "error": new_error_word("cpu"),
    }


def rope_pages(**others) -> dict:
    """What makes `rope_arguments` paged: 7 pages of 16 keys, two of them a request."""
    pages = {"k_cache": torch.zeros(7, 16, 2, 16), "v_cache": torch.zeros(7, 16, 2, 16)}
    return pages | {"block_table": ints(3, 2)} | others
