"""The training mixture: batches of generated tasks and of real text, made as they are needed.

A batch is a function of the seed, the step and the rank alone, so training resumes at any step
without reading what came before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from tokenizers import Tokenizer

from ..tasks import TASKS, draw
from .rows import Document, Masking, Rows, pack
from .text import documents
from .tokenizer import BOS_ID, EOS_ID

TEXT_CHUNK = 96  # tokens of a text document, at most


@dataclass(frozen=True)
class Mixture:
    """Where batches come from.

    text_share: of the documents, those of real text; the others are tasks.
    task_weights: how much likelier than another a task is; 1 where it is not named.
    row_length: tokens a row; tokens_per_batch: documents are drawn until they hold so many,
        noisy copies included.
    """

    tokenizer: Tokenizer
    seed: int
    text_share: float
    row_length: int
    tokens_per_batch: int
    task_weights: Mapping[str, float] = field(default_factory=dict)

    def batch(self, step: int, noise: Masking | None, rank: int = 0) -> Rows:
        """The rows of one step on one rank."""
        rng = Random(f"{self.seed} {step} {rank}")
        weights = [self.task_weights.get(name, 1.0) for name in TASKS]

        def drawn():
            while True:
                if rng.random() < self.text_share:
                    yield self._text(rng)
                else:
                    (make,) = rng.choices(list(TASKS.values()), weights)
                    yield self._task(make, rng)

        return pack(drawn(), noise, self.row_length, self.tokens_per_batch, rng)

    def _task(self, make, rng: Random) -> Document:
        example = draw(make, "train", rng)
        return chat_document(self.tokenizer, example.prompt, example.answer)

    def _text(self, rng: Random) -> Document:
        text = rng.choice(self._texts)
        tokens = [*self.tokenizer.encode(text, add_special_tokens=False).ids, EOS_ID]
        begin = rng.randrange(max(len(tokens) - TEXT_CHUNK // 2, 1))
        return Document([BOS_ID, *tokens[begin : begin + TEXT_CHUNK - 1]])

    @cached_property
    def _texts(self) -> list[str]:
        return documents("train")


def chat_document(tokenizer: Tokenizer, prompt: str, answer: str) -> Document:
    """A prompt and its answer, of which the answer is learned."""
    ids = tokenizer.encode(prompt).ids
    answer_ids = tokenizer.encode(answer, add_special_tokens=False).ids
    return Document([*ids, *answer_ids, EOS_ID], start=len(ids))
