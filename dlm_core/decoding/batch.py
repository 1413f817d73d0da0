"""Many requests at once: who runs, what runs together, and who has to wait for memory."""

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from dlm_kernels.backend import backend_for, contents_checked
from dlm_kernels.cache_layout import CACHE_DTYPE

from ..kv_scales import KVScales
from ..model import Model
from ..paged_cache import Context, OutOfPages, PagePool
from .new_request import checked_numerics, infill_request, new_request, refine_request
from .request import Request
from .runner import Runner


class Batch:
    """Decodes requests of any lengths, modes and rules together, from one pool of cache pages.

    Each `step` runs one forward, or one cycle of self-speculation, for every running request;
    requests that want the same kind and shape run as one batch, prompts those of equal length.
    Requests may be submitted and cancelled between steps, and leave when they finish:

        while batch.running or batch.waiting:
            for request in batch.step():
                print(request.take_new_tokens(), request.finished)

    Where pages run out, the request that came
    last moves to host memory and goes on later. Under `batch_invariant` numerics a request's tokens
    are the same whatever happens around it.
    """

    def __init__(
        self,
        model: Model,
        *,
        pages: int,
        page_size: int = 64,
        numerics: str = "batch_invariant",
        kv_scales: KVScales | None = None,
        graphs: bool | None = None,
    ) -> None:
        """A pool of `pages` pages of `page_size` tokens, a power of two from 16.

        kv_scales: keep keys and values in float8, over these scales; see `calibrated_kv_scales`.
        graphs: capture each kind and shape of forward once and replay it; by default on CUDA with
            Triton kernels and without DLM_CHECK=1, which reads the device.
        MemoryError if the model's device has no memory for the pool.
        """
        checked_numerics(numerics)
        if kv_scales is not None and not isinstance(kv_scales, KVScales):
            raise TypeError(f"kv_scales is a {type(kv_scales).__name__}; it must be a KVScales")
        self._device = model.device
        dtype = model.dtype if kv_scales is None else CACHE_DTYPE
        self.pool = PagePool(
            model.config, pages, page_size, device=model.device, dtype=dtype, scales=kv_scales
        )
        if graphs is None:
            on_triton = backend_for(self.pool.keys[0]) == "triton"
            graphs = model.device.type == "cuda" and on_triton and not contents_checked()
        self.runner = Runner.of(model, numerics, pool=self.pool, graphs=graphs)
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()

    def submit(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        mode: str = "autoregressive",
        **options,
    ) -> Request:
        """Queue a request; arguments are those of `generate`, which also says what is raised.

        `numerics` is the batch's. In place of `on_step`, `events=True` collects StepEvents in
        `Request.events`. ValueError as well if the whole pool could not hold the request.
        """
        return self.add(new_request(self.runner.model, prompt, max_new_tokens, mode, **options))

    def submit_infill(
        self, before: Sequence[int], length: int, after: Sequence[int], **options
    ) -> Request:
        """Queue a gap to fill; arguments are those of `infill`."""
        return self.add(infill_request(self.runner.model, before, length, after, **options))

    def submit_refine(self, prompt: Sequence[int], draft: Sequence[int], **options) -> Request:
        """Queue a draft to revise; arguments are those of `refine`."""
        return self.add(refine_request(self.runner.model, prompt, draft, **options))

    def add(self, request: Request) -> Request:
        """Queue a request made by `dlm_core.decoding.new_request`, once; returns it."""
        if request.finished or request.context is not None or request in self.waiting:
            raise ValueError("request was added before; it must be a new one")
        pages = self.pool.pages_for(request.mode.longest)
        if pages > self.pool.n_pages:
            raise ValueError(
                f"max_new_tokens is {request.max_new_tokens}; behind a prompt of"
                f" {len(request.prompt)} tokens that can take {pages} pages, and the pool has"
                f" {self.pool.n_pages}"
            )
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Drop a request and give its pages back; what it has generated stays readable.

        Nothing happens if it is finished or was dropped before. ValueError if it is in no queue of
        this batch.
        """
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        elif isinstance(request, Request) and request.finished:
            return
        else:
            raise ValueError("request is not in this batch; it must have been submitted to it")
        self._leave(request)

    def step(self) -> list[Request]:
        """Advance every running request once; returns those that advanced, in order of arrival.

        If running some of them raises, they are dropped as by `cancel`, with `Request.error` set,
        and the error goes on to the caller; the others are as if the step had ended before them.
        """
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            return self._step()

    def _step(self) -> list[Request]:
        self._admit()
        self._reserve()
        advanced = list(self.running)
        together: dict[tuple, list[Request]] = {}
        for request in advanced:
            run, shape, _ = request.phase
            together.setdefault((run, shape), []).append(request)
        for (run, _), requests in together.items():
            try:
                run(self.runner, requests)
            except BaseException as error:  # an interrupt too leaves them half advanced
                for request in requests:
                    request.error = error
                    self.cancel(request)
                raise
            for request in requests:
                if request.phase is None:
                    self.cancel(request)
        return advanced

    def run(self) -> None:
        """Step until no request is left."""
        while self.running or self.waiting:
            self.step()

    def _admit(self) -> None:
        """Let waiting requests in, the first first, as long as the pool has room for them."""
        while self.waiting:
            request = self.waiting[0]
            try:
                self._bring_in(request)
            except OutOfPages:
                return
            self.running.append(self.waiting.popleft())

    def _bring_in(self, request: Request) -> None:
        """Give a waiting request its pages, or raise OutOfPages and leave it as it is."""
        if request.context is None:
            # The last id of the prompt has to run, whoever shares the rest.
            context = Context(self.pool, request.prompt[:-1])
            request.context = context
            phase = request.mode.first_phase(request)
            try:
                context.reserve(phase.room)
            except OutOfPages:
                context.free()
                request.context = None
                raise
            request.phase = phase
            return
        room = request.phase.room
        if self.pool.pages_for(request.context.length + room) > self.pool.n_free:
            raise OutOfPages("a request in host memory does not fit yet")
        request.context.swap_in()
        request.context.reserve(room)

    def _reserve(self) -> None:
        """Give each running request the pages of its next phase; the last to come make room."""
        for request in list(self.running):
            while request in self.running:
                try:
                    request.context.reserve(request.phase.room)
                    break
                except OutOfPages:
                    last = self.running[-1]
                    last.context.swap_out()
                    self.waiting.appendleft(self.running.pop())

    def _leave(self, request: Request) -> None:
        # The mode goes too, for it holds tensors of the batches that the request was in.
        request.phase, request.mode, request.finished = None, None, True
        if request.context is not None:
            request.context.free()
