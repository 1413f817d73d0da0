"""Causal forwards over what is known: every mode begins with the prompt."""

import torch
from torch import Tensor

from dlm_kernels.validate import MAX_BLOCK

from ..cache import KVCache
from ..paged_cache import PagedKVCache, to_device
from .request import Phase, Request
from .runner import Runner, check_tokens, table_of
from .sampling import SamplingTable


def extend(
    runner: Runner,
    cache: KVCache | PagedKVCache,
    tokens: Tensor,
    table: SamplingTable | None,
) -> Tensor:
    """Run int32 or int64 `tokens` [batch, M] causally, which makes them context.

    Returns each request's next token, greedily without a table: int32 [batch], on the device.
    """
    hidden = runner.hidden(tokens, cache, causal=True)
    cache.advance(tokens.shape[1])
    position = cache.lengths[:, None].long()
    return runner.choose(hidden[:, -1:], table, position, torch.zeros_like(position))[:, 0]


def extend_work(
    runner: Runner, shape: tuple, cache: PagedKVCache, tokens: Tensor, *table: Tensor
) -> tuple[Tensor, Tensor]:
    """`extend` as device work: the next tokens [batch], twice."""
    token = extend(runner, cache, tokens, SamplingTable(*table) if table else None)
    return token, token


def prefill_phase(request: Request, *, needs_seed: bool, bans_eos: bool = False) -> Phase:
    """The next chunk of the prompt; `Mode.begin` follows the last one.

    needs_seed: the token behind the prompt is wanted; with `bans_eos` one that is no EOS.
    """
    left = len(request.prompt) - request.context.length
    chunk = min(left, MAX_BLOCK)
    is_last = chunk == left
    shape = (chunk, is_last, needs_seed, bans_eos, request.sampling.greedy)
    return Phase(_prefill, shape, chunk)


def _prefill(runner: Runner, requests: list[Request]) -> None:
    """Run a chunk of each prompt. Chunks come in all lengths and once, so eagerly."""
    chunk, is_last, needs_seed, bans_eos, _ = requests[0].phase.shape
    device = runner.model.device
    starts = [request.context.length for request in requests]
    ids = [
        request.prompt[start : start + chunk]
        for request, start in zip(requests, starts, strict=True)
    ]
    tokens = to_device(torch.tensor(ids), device)
    cache = PagedKVCache([request.context for request in requests])
    for request in requests:
        request.forwards["prefill"] += 1
    if is_last and needs_seed:
        table = table_of([request.sampling for request in requests], device)
        chooser = runner.banning_eos() if bans_eos else runner
        seeds = extend(chooser, cache, tokens, table)
        values = runner.read(seeds).tolist()
        check_tokens(values)
        for i, request in enumerate(requests):
            publish_prompt(request)
            request.mode.begin(request, seeds[i : i + 1], values[i])
        return
    runner.hidden(tokens, cache, causal=True)
    cache.advance(chunk)
    for request in requests:
        if is_last:
            publish_prompt(request)
            request.mode.begin(request, None, None)
        else:
            request.phase = request.mode.first_phase(request)


def publish_prompt(request: Request) -> None:
    """Let later requests that begin with the same prompt share its pages."""
    request.context.pool.publish(request.prompt, request.context.pages)
