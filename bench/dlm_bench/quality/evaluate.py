"""Decode held-out examples by one setting, many requests together, and check every answer."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dlm_core import RULES, Batch, Generation, KVScales, Model
from dlm_core.decoding import Request
from dlm_core.tasks import Example, are_right, heldout

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONCURRENT = 64  # requests that run together; their tokens do not depend on it
PAGE_SIZE = 64


@dataclass(frozen=True)
class Setting:
    """A way to decode; the fields are arguments of `dlm_core.generate`, None where not given."""

    mode: str
    rule: str | None = None
    threshold: float | None = None
    steps: int | None = None
    block_length: int | None = None
    lora: bool | None = None

    @property
    def options(self) -> dict[str, object]:
        """Keyword arguments of `Batch.submit` beside the mode."""
        given = asdict(self)
        del given["mode"]
        return {name: value for name, value in given.items() if value is not None}

    @property
    def seeded(self) -> bool:
        """Whether the prefill gives an answer's first token, as it does but for some rules."""
        return self.rule is None or RULES[self.rule].seed_first_token

    @property
    def name(self) -> str:
        """In words, without the block length."""
        if self.rule is not None:
            return f"{self.mode}, rule {self.rule}"
        if self.threshold is not None:
            return f"{self.mode}, threshold {self.threshold:g}"
        if self.steps is not None:
            return f"{self.mode}, {self.steps} step{'s' * (self.steps > 1)} a block"
        return f"{self.mode}, LoRA" if self.lora else self.mode


@dataclass(frozen=True)
class Outcome:
    """One example decoded: its tokens with their forwards, the text they are, and whether right."""

    example: Example
    generation: Generation
    text: str
    right: bool

    @property
    def forwards(self) -> int:
        """All but the prefill's."""
        return sum(n for kind, n in self.generation.forwards.items() if kind != "prefill")


def sample(per_task: int, seed: int) -> list[Example]:
    """Held-out examples, one of each task in turn: any multiple of the tasks' number is a sample
    with as many of each task, and part of every longer one."""
    drawn = heldout(per_task, seed)
    columns = [drawn[i : i + per_task] for i in range(0, len(drawn), per_task)]
    return [example for row in zip(*columns, strict=True) for example in row]


def longest_answer(tokenizer: "Tokenizer", examples: Sequence[Example]) -> int:
    """Tokens of the longest right answer and its EOS: what runs on behind them is not right."""
    answers = [example.answer for example in examples]
    return 1 + max(len(each.ids) for each in encoded(tokenizer, answers, special=False))


def encoded(tokenizer: "Tokenizer", texts: Sequence[str], *, special: bool) -> list:
    """Encodings of `texts`; with `special` tokens each is the prompt of a chat."""
    return tokenizer.encode_batch(list(texts), add_special_tokens=special)


def evaluate(
    model: Model,
    tokenizer: "Tokenizer",
    examples: Sequence[Example],
    setting: Setting,
    *,
    max_new_tokens: int,
    parts: Sequence[Sequence[int]] | None = None,
    kv_scales: KVScales | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[list[Outcome], list[float]]:
    """Decode each example's prompt greedily and check the answer, which has to end with an EOS.

    Args:
        tokenizer: makes a chat of a prompt, and text of tokens.
        max_new_tokens: at most so many of an answer; see `longest_answer`.
        parts: indices of the examples that are decoded together, one part after the other; every
            index is in one of them. By default all are one part.
        kv_scales: for a cache in float8; see `Batch`.
        on_done: called as each example is decoded.

    Returns the outcomes, in the order of the examples, and the seconds that decoding each part
    took: from prompts as ids to tokens, without what becomes of the text.
    Raises ValueError if the model has no room for a prompt and its answer.
    """
    prompts = [each.ids for each in encoded(tokenizer, [e.prompt for e in examples], special=True)]
    block = setting.block_length or model.config.block_size
    longest = max(map(len, prompts)) + max_new_tokens + 2 * block
    pages = CONCURRENT * -(-longest // PAGE_SIZE)
    batch = Batch(model, pages=pages, page_size=PAGE_SIZE, kv_scales=kv_scales)
    requests: dict[int, Request] = {}
    seconds = []
    for part in [range(len(prompts))] if parts is None else parts:
        begin = time.perf_counter()
        # Equal lengths run their prompts as one forward.
        waiting = iter(sorted(part, key=lambda i: len(prompts[i])))
        n_done = 0
        while n_done < len(part):
            free = CONCURRENT - len(batch.running) - len(batch.waiting)
            for i in itertools.islice(waiting, free):
                requests[i] = batch.submit(
                    prompts[i], max_new_tokens, setting.mode, **setting.options
                )
            for request in batch.step():
                if request.finished:
                    n_done += 1
                    on_done()
        seconds.append(time.perf_counter() - begin)

    generations = [requests[i].generation for i in range(len(prompts))]
    texts = [tokenizer.decode(generation.tokens) for generation in generations]
    ended = [generation.tokens[-1] == model.config.eos_token_id for generation in generations]
    checked = are_right(examples, texts)
    outcomes = [
        Outcome(example, generation, text, right and end)
        for example, generation, text, right, end in zip(
            examples, generations, texts, checked, ended, strict=True
        )
    ]
    return outcomes, seconds
