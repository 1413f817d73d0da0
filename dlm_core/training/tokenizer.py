"""A byte-level BPE tokenizer trained on the tasks and on real text.

Every digit is a token of its own, together with the space before it if there is one, and so is
every letter that stands alone: a model can then copy, compare and carry them one by one. Words and
runs of punctuation merge. Any text can be encoded, since every byte has a token.
"""

import itertools
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ..tasks import examples
from .text import documents

MASK, EOS, BOS, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|mask|>",
    "<|end|>",
    "<|begin|>",
    "<|user|>",
    "<|assistant|>",
)
MASK_ID, EOS_ID, BOS_ID, USER_ID, ASSISTANT_ID = range(len(SPECIAL_TOKENS))

TRAINING_EXAMPLES = 30_000
TRAINING_DOCUMENTS = 3_000
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
# A digit, a word or a run of punctuation, each with one space before it; else a run of spaces.
PIECES = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(seed: int, vocab_size: int = 2048) -> Tokenizer:
    """The tokenizer that `vocab_size` ids give, special tokens first, then bytes, then merges.

    `encode(text)` gives the ids of a chat prompt, `<|begin|><|user|>text<|assistant|>`, and
    `encode(text, add_special_tokens=False)` those of the text alone; `decode` leaves special
    tokens out. Only the training split is read, and the same seed gives the same tokenizer.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size must be at least {SMALLEST_VOCABULARY}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tasks = itertools.islice(examples("train", seed), TRAINING_EXAMPLES)
    texts = documents("train")
    sample = Random(seed).sample(texts, min(TRAINING_DOCUMENTS, len(texts)))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (text for example in tasks for text in (example.prompt, example.answer))
    tokenizer.train_from_iterator(itertools.chain(pieces, sample), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} {USER} $A {ASSISTANT}",
        special_tokens=[(BOS, BOS_ID), (USER, USER_ID), (ASSISTANT, ASSISTANT_ID)],
    )
    return tokenizer
