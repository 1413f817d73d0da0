"""One forward of any kind, whole, run by what decoding runs: ready to be timed again and again.

Keys, values, hidden states and logits are random numbers of order one, so that no arithmetic is on
denormal numbers, for which a CPU takes many times as long.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dlm_core import KVCache, Model
from dlm_core.decoding.denoise import Needs, denoise_step
from dlm_core.decoding.prefill import extend
from dlm_core.decoding.runner import Runner
from dlm_core.decoding.sampling import Sampling, SamplingTable
from dlm_core.decoding.self_speculation import linear_cycle, quadratic_cycle
from dlm_kernels import BlockState, Rule, RuleTable, raise_on_error
from dlm_kernels.cache_layout import CACHE_DTYPE
from dlm_roofline.forward import DECODE, DENOISE, DRAFT, LINEAR, QUADRATIC, VERIFY, Forward

from .cases import THRESHOLD, restore
from .peers import plain_logits, softmax_gather, where_scatter


class StepBench:
    """A forward of a model behind a random context.

    Blocks that are denoised or drafted are masks but for their first token, so that each row of
    logits counts; what is decoded or verified are random tokens.

    Raises ValueError if its context and block do not fit into the model's positions.
    """

    def __init__(self, model: Model, forward: Forward) -> None:
        self.model, self.forward, self.runner = model, forward, Runner.of(model)
        self.cache = random_cache(model, forward)

        config, device, batch = model.config, model.device, forward.batch
        self.ids = {"mask_id": config.mask_token_id, "eos_id": config.eos_token_id}
        shape = (batch, forward.block)
        self.tokens = torch.randint(config.vocab_size, shape, dtype=torch.int32, device=device)
        self.tokens[self.tokens == config.mask_token_id] = config.bos_token_id
        if forward.kind in (DENOISE, DRAFT):
            self.tokens[:, 1:] = config.mask_token_id
        if forward.kind == DENOISE:
            self.state = BlockState.start(self.tokens.clone(), config.mask_token_id)
            self._start = [each.clone() for each in self.state]
            rule, sampling = Rule(threshold=THRESHOLD), Sampling()
            self._step_inputs = (
                Needs.of(rule, sampling),
                RuleTable.pack([rule] * batch, device),
                SamplingTable.pack([sampling] * batch, device),
            )
        if forward.kind == QUADRATIC:
            self._drafted = self.tokens[:, 1 : forward.k].contiguous()
            self.tokens.unflatten(1, forward.draft_groups)[:, :, 1:] = config.mask_token_id
        # What keys the noise of a drawn token; choices here are greedy.
        self._step = torch.zeros(batch, dtype=torch.int64, device=device)
        self._position = torch.zeros(shape, dtype=torch.int64, device=device)

    def step(self, numerics: str = "batch_invariant") -> Tensor:
        """The whole forward; returns the tokens it chose, of a denoising step the block."""
        runner, forward = replace(self.runner, numerics=numerics), self.forward
        if forward.kind == DECODE:
            return extend(runner, self.cache, self.tokens, None)
        if forward.kind == DENOISE:
            needs, rules, table = self._step_inputs
            denoise_step(runner, self.cache, self.state, needs, rules, table)
            return self.state.tokens
        if forward.kind == QUADRATIC:
            shape, seeds = (forward.k, True), self.tokens[:, 0]
            return quadratic_cycle(runner, shape, self.cache, seeds, self._step, self._drafted)[0]
        if forward.kind == LINEAR:
            shape, seeds = (forward.block, runner.model.has_draft_lora, True), self.tokens[:, 0]
            return linear_cycle(runner, shape, self.cache, seeds, self._step)[0]
        hidden = runner.hidden(self.tokens, self.cache, causal=forward.kind == VERIFY)
        return self.choose(runner, hidden)

    @property
    def has_peer(self) -> bool:
        """Whether plain torch does the same with a few calls: nothing hidden, nothing quantised."""
        forward = self.forward
        same = forward.weights is None and not forward.float8_cache
        return same and forward.kind in (DECODE, DENOISE)

    def peer(self) -> Tensor:
        """The same forward in plain torch; see `has_peer`."""
        tokens = self.tokens
        logits = plain_logits(self.model, self.cache, self.forward.context, tokens)
        if self.forward.kind == DECODE:
            return logits[:, -1].argmax(-1)
        candidate, confidence = (x.view_as(tokens) for x in softmax_gather(logits.flatten(0, 1)))
        return where_scatter(tokens, candidate, confidence, **self.ids, threshold=THRESHOLD)[0]

    def reset(self) -> None:
        """Back to before the first step."""
        if self.forward.kind == DENOISE:
            restore(self.state, self._start)
        self.cache.lengths.fill_(self.forward.context)
        self.cache.max_length = self.forward.context

    def check(self) -> None:
        """Raise if a step so far has set the error word."""
        raise_on_error(self.runner.error)

    def choose(self, runner: Runner, hidden: Tensor) -> Tensor:
        """What follows the layers, but for remasking: the tokens that hidden states give.

        Of "verify" and "quadratic" the count of right drafts comes first.
        """
        forward, inputs = self.forward, (None, self._position, self._step)
        if forward.kind == DECODE:
            return runner.choose(hidden[:, -1:], *inputs)
        if forward.kind == DRAFT:  # a block's first token is given
            return runner.choose(hidden[:, 1:], *inputs)
        if forward.kind == VERIFY:
            choices = runner.choose(hidden, *inputs)
            right = self._right(choices, self.tokens[:, 1:])
            return torch.cat([right[:, None], choices], 1)
        groups = hidden.unflatten(1, (forward.k, forward.k + 1))
        choices = runner.choose(groups[:, :, 0], *inputs)
        right = self._right(choices, self._drafted)
        masks = groups[torch.arange(forward.batch, device=hidden.device), right.long(), 2:]
        drafts = runner.choose(masks, *inputs)
        return torch.cat([right[:, None], choices, drafts], 1)

    @staticmethod
    def _right(choices: Tensor, drafts: Tensor) -> Tensor:
        return (choices[:, :-1] == drafts).cumprod(1).sum(1, dtype=torch.int32)


def written_by(forward: Forward) -> int:
    """Tokens that a forward leaves in the cache of each request."""
    kept = {DECODE: 1, VERIFY: forward.block, LINEAR: forward.block, QUADRATIC: forward.k}
    return kept.get(forward.kind, 0)


def random_cache(model: Model, forward: Forward) -> KVCache:
    """Contexts of random keys and values, with room for what the forward writes."""
    dtype = CACHE_DTYPE if forward.float8_cache else model.dtype
    capacity = max(forward.context + written_by(forward), 1)
    cache = KVCache(model.config, forward.batch, capacity, device=model.device, dtype=dtype)
    drawn = torch.randn(cache.keys[0].shape, dtype=model.dtype, device=model.device)
    for tensor in (*cache.keys, *cache.values):
        tensor.copy_(drawn)
    cache.advance(forward.context)
    return cache
