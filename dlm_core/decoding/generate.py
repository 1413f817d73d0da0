"""The public entries for one request: generate, infill, refine, stream."""

from collections.abc import Callable, Iterator, Sequence

from dlm_kernels import Rule

from ..model import Model
from .batch import Batch
from .new_request import DEFAULT_REFINE_RULE, infill_request, new_request, refine_request
from .request import Request
from .result import Generation, StepEvent
from .sampling import Sampling

_PAGE_SIZE = 64


def generate(
    model: Model,
    prompt: Sequence[int],
    max_new_tokens: int,
    mode: str = "autoregressive",
    *,
    block_length: int | None = None,
    rule: Rule | str | None = None,
    threshold: float | None = None,
    steps: int | None = None,
    lora: bool | None = None,
    sampling: Sampling | None = None,
    numerics: str = "batch_invariant",
    on_step: Callable[[StepEvent], None] | None = None,
) -> Generation:
    """Generate behind one prompt. The mask id is never chosen, in any mode.

    Args:
        model: from `load_model` or `random_model`.
        prompt: token ids, at least one; the mask id is not allowed.
        max_new_tokens: at most so many tokens come back; an EOS ends them sooner.
        mode: "autoregressive", one token a forward; "diffusion", blocks of masks denoised in a few
            forwards; "linear_spec" and "quadratic_spec", drafts by diffusion that causal rows
            verify, which gives what "autoregressive" gives in fewer forwards: the same tokens if
            greedy, the same distribution if sampled.
        block_length: diffusion and linear_spec: tokens a block, 2 to 256, by default the config's
            block_size; quadratic_spec: drafts a cycle, 2 to 16, by default at most 16. Blocks are
            always whole: what goes beyond max_new_tokens is cut.
        rule: diffusion: what a step commits, a `Rule` or the name of a preset; "nemotron" if
            neither this nor one of the next two is given.
        threshold: diffusion, in [0, 1]: `Rule(threshold=...)`. A step commits every masked position
            whose candidate is at least this likely, and always the likeliest.
        steps: diffusion, in [1, block_length - 1]: `Rule(steps=...)`. A block's masks are split
            evenly over so many steps, the earlier ones taking the remainder.
        lora: linear_spec: draft with the checkpoint's draft LoRA. By default, where it has one.
        sampling: temperature, filters and seed; greedy by default.
        numerics: "batch_invariant": tokens are a function of the request alone. "fast": products
            and attention may round by shape, so that self-speculation can differ from
            autoregressive decoding where two tokens are about equally likely.
        on_step: diffusion: called after each denoising step.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it and its value.
        MemoryError: the device has no memory for the cache.
        dlm_kernels.DeviceError: the logits held NaN or nothing to choose.
    """
    _check_on_step(on_step, mode)
    request = new_request(
        model,
        prompt,
        max_new_tokens,
        mode,
        block_length=block_length,
        rule=rule,
        threshold=threshold,
        steps=steps,
        lora=lora,
        sampling=sampling,
        events=None if on_step is None else True,
    )
    return _finished(model, request, numerics, on_step)


def infill(
    model: Model,
    before: Sequence[int],
    length: int,
    after: Sequence[int],
    *,
    rule: Rule | str | None = None,
    threshold: float | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    numerics: str = "batch_invariant",
    on_step: Callable[[StepEvent], None] | None = None,
) -> Generation:
    """Fill a gap of `length` tokens between two texts, of which neither changes.

    The gap and what follows it are one block, so every position sees both sides. No token of it is
    seeded from what stands before it alone, but the first under a rule with `logit_shift`.

    Args:
        before: token ids before the gap, at least one.
        length: tokens in the gap; with `after` at most 256. An EOS is never put into it.
        after: token ids behind the gap.
        The others are those of `generate` in mode "diffusion".

    Returns:
        A Generation whose tokens are the gap's.
    """
    _check_on_step(on_step, "diffusion")
    request = infill_request(
        model,
        before,
        length,
        after,
        rule=rule,
        threshold=threshold,
        steps=steps,
        sampling=sampling,
        events=on_step is not None,
    )
    return _finished(model, request, numerics, on_step)


def refine(
    model: Model,
    prompt: Sequence[int],
    draft: Sequence[int],
    *,
    rule: Rule | str = DEFAULT_REFINE_RULE,
    block_length: int | None = None,
    sampling: Sampling | None = None,
    numerics: str = "batch_invariant",
    on_step: Callable[[StepEvent], None] | None = None,
) -> Generation:
    """Revise a draft, block after block: tokens are edited, or masked again and filled anew.

    An EOS is a token like any other here: it may be edited, and the draft goes on behind it.

    Args:
        prompt: token ids before the draft, at least one; they do not change.
        draft: token ids to revise, at least one.
        rule: has `edit_steps` or `remask_below`, and no `logit_shift`.
        block_length: tokens a block, 1 to 256, by default the config's block_size.
        The others are those of `generate` in mode "diffusion".

    Returns:
        A Generation of the revised tokens, cut after the first EOS.
    """
    _check_on_step(on_step, "diffusion")
    request = refine_request(
        model,
        prompt,
        draft,
        rule=rule,
        block_length=block_length,
        sampling=sampling,
        events=on_step is not None,
    )
    return _finished(model, request, numerics, on_step)


def stream(
    model: Model,
    prompt: Sequence[int],
    max_new_tokens: int,
    mode: str = "autoregressive",
    *,
    numerics: str = "batch_invariant",
    events: bool = False,
    **options,
) -> Iterator[list[int] | StepEvent]:
    """The tokens of `generate` in runs, each as soon as it is decided for good.

    In diffusion a run ends before the first mask; a rule that edits or masks again decides whole
    blocks. With `events`, for diffusion, each denoising step's StepEvent comes before its run.
    Arguments are checked at once, not at the first run; leaving the iterator early is fine.
    """
    wanted = True if events else None
    request = new_request(model, prompt, max_new_tokens, mode, **options, events=wanted)
    batch = _batch_for(model, request, numerics)
    return _runs(batch, request)


def _check_on_step(on_step: Callable | None, mode: str) -> None:
    if on_step is None:
        return
    if not callable(on_step):
        raise TypeError(f"on_step is {on_step!r}; it must be callable")
    if mode != "diffusion":
        raise ValueError(f"on_step is {on_step!r}; it needs mode='diffusion'")


def _runs(batch: Batch, request: Request) -> Iterator[list[int] | StepEvent]:
    while batch.running or batch.waiting:
        batch.step()
        yield from request.events
        request.events.clear()
        if new := request.take_new_tokens():
            yield new


def _finished(
    model: Model,
    request: Request,
    numerics: str,
    on_step: Callable[[StepEvent], None] | None,
) -> Generation:
    """Run one request to its end."""
    batch = _batch_for(model, request, numerics)
    while batch.running or batch.waiting:
        batch.step()
        for event in request.events:
            on_step(event)
        request.events.clear()
    return request.generation


def _batch_for(model: Model, request: Request, numerics: str) -> Batch:
    """A batch with just the pages that one request can need."""
    pages = -(-request.mode.longest // _PAGE_SIZE)
    batch = Batch(model, pages=pages, page_size=_PAGE_SIZE, numerics=numerics)
    batch.add(request)
    return batch
