"""Batch: a request's tokens are its own, whoever else is served, and memory comes back."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from dlm_core import (
    Batch,
    Generation,
    Model,
    Request,
    Sampling,
    generate,
    infill,
    load_model,
    random_model,
    refine,
)  # fmt: skip
from dlm_core.decoding import runner, self_speculation
from dlm_core.paged_cache import Context
from dlm_kernels import DeviceError, Rule

SEEDED = Sampling(temperature=0.8, top_p=0.95, seed=11)
# Every mode, several rules, greedy and sampled, of different lengths.
KINDS = {
    "ar": ("autoregressive", 13, {}),
    "ar-sampled": ("autoregressive", 9, {"sampling": SEEDED}),
    "threshold": ("diffusion", 17, {"threshold": 0.9}),
    "budget": ("diffusion", 24, {"steps": 3}),
    "llada": ("diffusion", 16, {"rule": "llada"}),
    "llada2": ("diffusion", 10, {"rule": "llada2"}),
    "fast_dllm": ("diffusion", 16, {"rule": "fast_dllm"}),
    "dream": ("diffusion", 11, {"rule": "dream"}),
    "entropy_bound": ("diffusion", 16, {"rule": "entropy_bound"}),
    "diffusion_gemma": ("diffusion", 8, {"rule": "diffusion_gemma", "sampling": SEEDED}),
    "random": ("diffusion", 12, {"rule": Rule(confidence="random", steps=4)}),
    "margin": ("diffusion", 12, {"rule": Rule(confidence="margin", top_k=2)}),
    "remask": ("diffusion", 12, {"rule": Rule(top_k=3, steps=None, remask_below=0.4)}),
    "sampled": ("diffusion", 15, {"threshold": 0.7, "sampling": SEEDED}),
    "linear": ("linear_spec", 20, {"lora": False}),
    "linear-lora": ("linear_spec", 14, {"lora": True}),
    "linear-sampled": ("linear_spec", 14, {"sampling": SEEDED}),
    "quadratic": ("quadratic_spec", 18, {"block_length": 6}),
    "quadratic-sampled": ("quadratic_spec", 12, {"block_length": 4, "sampling": SEEDED}),
    "infill": ("infill", 5, {"steps": 3}),
    "infill-sampled": ("infill", 6, {"rule": "llada", "sampling": SEEDED}),
    "refine": ("refine", 12, {"rule": Rule(edit_threshold=0.4, edit_steps=5)}),
}
# Those whose length a request sets, and that need no LoRA.
LONG = [kind for kind in KINDS if not kind.startswith(("infill", "refine", "linear-lora"))]
ONE_OF_EACH_MODE = (
    "ar-sampled", "threshold", "llada2", "linear-lora", "quadratic-sampled", "infill", "refine",
)  # fmt: skip
AFTER, DRAFT = [30, 31, 32], [5, 60, 7, 33, 12, 50, 21, 9, 40, 44, 48, 52]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(torch.float32, id="fp32"),
        pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
    ],
)
def model(device: str, request: pytest.FixtureRequest) -> Model:
    folder = Path(__file__).parents[1] / "golden" / "tiny-a"
    return load_model(folder, device=device, dtype=request.param)


def prompt_of(kind: str) -> list[int]:
    """Ragged: 3 to 40 ids, different for each kind."""
    n = list(KINDS).index(kind)
    return [4 + (n + (1 + n % 4) * i) % 60 for i in range(3 + 7 * n % 38)]


@pytest.fixture(scope="module")
def alone(model: Model) -> dict[str, Generation]:
    """What each kind of request gives by itself."""
    return {kind: run_alone(model, kind, prompt_of(kind)) for kind in KINDS}


def call(kind: str, prompt: list[int], run: Callable, fill: Callable, revise: Callable):
    mode, limit, options = KINDS[kind]
    if mode == "infill":
        return fill(prompt, limit, AFTER, **options)
    if mode == "refine":
        return revise(prompt, DRAFT, **options)
    return run(prompt, limit, mode, **options)


def run_alone(model: Model, kind: str, prompt: list[int]) -> Generation:
    return call(kind, prompt, *(partial(run, model) for run in (generate, infill, refine)))


def submit(batch: Batch, kind: str, prompt: list[int] | None = None) -> Request:
    prompt = prompt or prompt_of(kind)
    return call(kind, prompt, batch.submit, batch.submit_infill, batch.submit_refine)


def assert_all_alike(requests: dict[str, Request], alone: dict[str, Generation]) -> None:
    for kind, request in requests.items():
        assert request.finished, kind
        assert request.generation == alone[kind], kind


@pytest.mark.parametrize("backwards", [False, True])
def test_every_kind_together(backwards: bool, model: Model, alone: dict[str, Generation]) -> None:
    """In either order, eagerly and replayed: on a GPU by CUDA graphs, on a CPU by the same work on
    the same kept buffers."""
    batch = Batch(model, pages=200, page_size=16, graphs=backwards)
    requests = {kind: submit(batch, kind) for kind in sorted(KINDS, reverse=backwards)}
    batch.run()
    assert_all_alike(requests, alone)
    assert batch.pool.n_free == 200


def test_requests_of_one_kind_run_as_one_forward(model: Model, monkeypatch) -> None:
    batch = Batch(model, pages=200)
    asked = [([4, 5, 6], {"threshold": 0.5}), ([5, 6, 7], {"threshold": 0.6}),
             ([6, 7, 8], {"steps": 2}), ([7, 8, 9], {"steps": 4})]  # fmt: skip
    expected = [generate(model, prompt, 16, "diffusion", **rule) for prompt, rule in asked]
    sizes = []
    forward = Model.forward

    def counted(self: Model, tokens, cache, **options):
        sizes.append(len(tokens))
        return forward(self, tokens, cache, **options)

    monkeypatch.setattr(Model, "forward", counted)
    requests = [batch.submit(prompt, 16, "diffusion", **rule) for prompt, rule in asked]
    batch.run()
    assert [request.generation for request in requests] == expected
    assert sizes[:2] == [4, 4], "prefill, then a denoising step of all"
    # Each forward counts for every request in it, and none is run for nothing.
    assert sum(sizes) == sum(sum(each.forwards.values()) for each in expected)
    assert sizes.count(4) < len(sizes), "who finished has left"


def test_replays_take_what_is_new_and_their_number_is_bounded(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of one shape replay each other's work; the least used is dropped first."""
    monkeypatch.setattr(runner, "MAX_GRAPHS", 5)
    batch = Batch(model, pages=200, page_size=16, graphs=True)
    graphs = batch.runner.graphs
    for seed, prompt in enumerate([[4, 5, 6], [9, 13, 17, 21], [60, 58, 56], [7, 8]]):
        for mode, options in (
            ("autoregressive", {"sampling": Sampling(temperature=0.5 + seed / 5, seed=seed)}),
            ("diffusion", {"threshold": 0.5 + seed / 20}),
            ("linear_spec", {}),
        ):
            request = batch.submit(prompt, 10, mode, **options)
            batch.run()
            assert request.generation == generate(model, prompt, 10, mode, **options)
    # Decoding, denoising, committing, and a cycle.
    assert len(graphs) == 4
    kept = list(graphs)
    for length in range(2, 9):
        batch.submit([4, 5], 3, "linear_spec", block_length=length)
    batch.run()
    assert len(graphs) == 5 and not set(graphs) & set(kept[:1])


def test_joining_between_steps(model: Model, alone: dict[str, Generation]) -> None:
    batch = Batch(model, pages=200, page_size=16)
    requests = {}
    for kind in KINDS:
        requests[kind] = submit(batch, kind)
        batch.step()
    batch.run()
    assert_all_alike(requests, alone)


@pytest.mark.parametrize("graphs", [True, pytest.param(False, marks=pytest.mark.full)])
@pytest.mark.parametrize("pages", [6, pytest.param(9, marks=pytest.mark.full)])
def test_after_preemption(
    pages: int, graphs: bool, model: Model, alone: dict[str, Generation]
) -> None:
    """In a pool that holds one or two of them, requests leave for host memory and come back."""
    batch = Batch(model, pages=pages, page_size=16, graphs=graphs)
    requests = {kind: submit(batch, kind) for kind in KINDS}
    swapped = set()
    while batch.running or batch.waiting:
        batch.step()
        there = {kind: each.context for kind, each in requests.items() if each.context is not None}
        swapped |= {kind for kind, context in there.items() if context.is_swapped_out}
    assert_all_alike(requests, alone)
    assert len(swapped) >= 3, f"only {swapped} were preempted"
    assert batch.pool.n_free == pages


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_out_after_every_step(
    kind: str, model: Model, alone: dict[str, Generation]
) -> None:
    batch = Batch(model, pages=60, page_size=16)
    request = submit(batch, kind)
    while batch.running or batch.waiting:
        batch.step()
        if batch.running:
            batch.running.remove(request)
            request.context.swap_out()
            batch.waiting.append(request)
    assert_all_alike({kind: request}, alone)


def test_with_a_shared_prefix(model: Model) -> None:
    prompt = [4 + 3 * i % 60 for i in range(70)]
    ends = {kind: [*prompt, 5 + n] for n, kind in enumerate(ONE_OF_EACH_MODE)}
    alone = {kind: run_alone(model, kind, ends[kind]) for kind in ends}
    batch = Batch(model, pages=300, page_size=16)
    holder = batch.submit(prompt, 200, "autoregressive")
    batch.step()  # its prompt is in the cache now
    used = batch.pool.n_pages - batch.pool.n_free
    requests = {kind: submit(batch, kind, ends[kind]) for kind in ends}
    batch.step()
    shared = holder.context.pages[:4]
    assert all(request.context.pages[:4] == shared for request in requests.values())
    assert batch.pool.n_pages - batch.pool.n_free <= used + 3 * len(ends) + 1
    while not all(request.finished for request in requests.values()):
        batch.step()
    assert_all_alike(requests, alone)
    batch.cancel(holder)
    assert batch.pool.n_free == batch.pool.n_pages


def test_an_equal_prompt_shares_all_but_its_end(model: Model) -> None:
    prompt = [4 + 3 * i % 60 for i in range(33)]
    batch = Batch(model, pages=20, page_size=16)
    first = batch.submit(prompt, 8)
    batch.step()
    second = batch.submit(prompt, 8)
    batch.step()
    assert second.context.pages[:2] == first.context.pages[:2]
    batch.run()
    assert first.generation.tokens == second.generation.tokens


def test_cancelling_frees_pages_and_disturbs_nobody(
    model: Model, alone: dict[str, Generation]
) -> None:
    """Before the first step, after it, and later."""
    batch = Batch(model, pages=100, page_size=16)
    requests = {kind: submit(batch, kind) for kind in KINDS}
    for kind, steps in (("linear", 0), ("budget", 1), ("ar", 3)):
        for _ in range(steps):
            batch.step()
        cancelled = requests.pop(kind)
        batch.cancel(cancelled)
        batch.cancel(cancelled)
        so_far = cancelled.generation.tokens
        assert so_far == alone[kind].tokens[: len(so_far)]
    batch.run()
    assert_all_alike(requests, alone)
    assert batch.pool.n_free == 100


def test_bad_requests_change_nothing(model: Model) -> None:
    batch = Batch(model, pages=4, page_size=16)
    for arguments, options, message in (
        (([4, 5], 80), {}, "max_new_tokens is 80; .* can take 6 pages, and the pool has 4"),
        (([4, 3], 8), {}, "prompt holds 3, the mask id"),
        (([4, 5], 8, "beam"), {}, "mode is 'beam'"),
        (([4, 5], 8, "diffusion"), {"rule": "greedy"}, "rule is 'greedy'; it must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            batch.submit(*arguments, **options)
    assert not batch.running and not batch.waiting and batch.pool.n_free == 4
    other = Batch(model, pages=4, page_size=16).submit([4, 5], 8)
    with pytest.raises(ValueError, match="request is not in this batch"):
        batch.cancel(other)
    with pytest.raises(TypeError, match="model is a str; it must be a Model"):
        generate("tiny-a", [4, 5], 8)
    with pytest.raises(ValueError, match="numerics is 'exact'"):
        Batch(model, pages=1, numerics="exact")


def test_a_fault_drops_those_it_hit_and_nobody_else(
    model: Model, alone: dict[str, Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step in which one group finishes, one fails, and others go on."""
    batch = Batch(model, pages=100, page_size=16)
    requests = {kind: submit(batch, kind) for kind in ("ar", "threshold", "linear", "quadratic")}
    short = batch.submit([4, 5], 1)
    for _ in range(2):
        batch.step()
    failing = requests.pop("linear")
    with monkeypatch.context() as patch:

        def fail(*_):
            raise DeviceError("told to")

        patch.setattr(self_speculation, "linear_cycle", fail)
        with pytest.raises(DeviceError, match="told to"):
            batch.step()
    assert failing.finished and isinstance(failing.error, DeviceError)
    assert short.finished and short.error is None
    batch.run()
    assert_all_alike(requests, alone)
    assert batch.pool.n_free == 100


def test_a_bad_row_of_one_request_drops_its_group(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are as they were before the cycle: nothing was emitted that is not in the cache."""
    batch = Batch(model, pages=100, page_size=16)
    pair = [batch.submit(prompt, 12, "linear_spec") for prompt in ([8, 11, 14], [20, 22, 24])]
    batch.step()
    before = [request.generation.tokens for request in pair]
    with monkeypatch.context() as patch:
        forward = Model.forward

        def spoiled(self: Model, *args, **options) -> torch.Tensor:
            """Every logit of the second request inf or -inf: there is none to choose."""
            hidden = forward(self, *args, **options)
            hidden[1].zero_()[:, 0] = torch.inf
            return hidden

        patch.setattr(Model, "forward", spoiled)
        # Drafts that are no ids are met in the verifying forward before its choices are read.
        with pytest.raises(DeviceError, match="outside the vocabulary"):
            batch.step()
    assert [request.generation.tokens for request in pair] == before
    assert all(request.finished for request in pair)
    assert batch.pool.n_free == 100


def test_a_swap_that_fails_loses_nothing(
    model: Model, alone: dict[str, Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(model, pages=4, page_size=16)
    requests = {kind: submit(batch, kind) for kind in ("quadratic", "linear")}
    with monkeypatch.context() as patch:

        def fail(self: Context) -> None:
            raise MemoryError("told to")

        patch.setattr(Context, "swap_out", fail)
        with pytest.raises(MemoryError, match="told to"):
            batch.run()
    batch.run()
    assert_all_alike(requests, alone)
    assert batch.pool.n_free == 4


def test_events_and_new_tokens_can_be_taken_between_steps(model: Model) -> None:
    batch = Batch(model, pages=20)
    request = batch.submit([5, 8, 11, 14], 20, "diffusion", threshold=0.9, events=True)
    seen, steps = [], 0
    while not request.finished:
        batch.step()
        seen += request.take_new_tokens()
        steps += len(request.events)
        request.events.clear()
    assert seen == request.generation.tokens
    assert steps == request.forwards["denoise"]
    assert request.mode is None, "a finished request keeps tensors of its batches"
    with pytest.raises(ValueError, match="request was added before"):
        batch.add(request)


@pytest.mark.parametrize("confident", [0.5, 0.9])
@pytest.mark.parametrize(
    "revision",
    [{"edit_threshold": 0.3}, {"remask_below": 0.4}, {"renoise": True}, {"seed_first_token": True}],
)
def test_tokens_are_those_of_the_last_steps(confident: float, revision: dict, model: Model) -> None:
    """Whatever the rule revises: what is emitted is what the blocks hold in the end."""
    rule = Rule(threshold=confident, top_k=2, **({"seed_first_token": False} | revision))
    blocks, events = {}, []
    result = generate(model, [5, 8, 11, 14], 24, "diffusion", rule=rule, on_step=events.append)
    for event in events:
        blocks[event.block] = event.tokens
    held = sum(blocks.values(), [])
    eos = model.config.eos_token_id
    if eos in held:
        held = held[: held.index(eos) + 1]
    # An EOS where the next block would begin has no step of its own.
    assert result.tokens in (held[:24], [*held, eos])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", LONG)
def test_a_step_waits_for_the_device_once(kind: str) -> None:
    """At its end, for the copy to pinned memory, which is no synchronising call of torch's."""
    model = random_model("tiny", device="cuda", dtype=torch.bfloat16)
    mode, _, options = KINDS[kind]
    batch = Batch(model, pages=60, page_size=16)
    for _ in range(2):  # the first captures what the second replays
        request = batch.submit([200, 300, 400], 100, mode, **options)
        batch.step()  # the prompt runs eagerly
        if batch.runner.graphs:
            torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(8):
                batch.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not request.finished
        batch.cancel(request)
