"""The tokenizer: regular pieces, a chat prompt, and nothing that it cannot write back."""

import statistics
import string
from collections.abc import Callable
from itertools import islice

import pytest
from tokenizers import Tokenizer

from dlm_core.tasks import LONG_TASKS, TASKS, examples, heldout
from dlm_core.tasks.json_pairs import KEYS, WORDS
from dlm_core.training import tokenizer as tokenizer_module
from dlm_core.training.text import documents
from dlm_core.training.tokenizer import (
    ASSISTANT_ID,
    BOS_ID,
    EOS_ID,
    MASK_ID,
    SPECIAL_TOKENS,
    USER_ID,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer(small_library: None) -> Tokenizer:
    """Trained on fewer examples than the small model's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "TRAINING_EXAMPLES", 6_000)
        return train_tokenizer(0)


@pytest.fixture
def pieces(tokenizer: Tokenizer) -> Callable[[str], list[str]]:
    """A text's tokens, each as text."""

    def cut(text: str) -> list[str]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [tokenizer.decode([i]) for i in ids]

    return cut


def test_special_ids(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == [MASK_ID, EOS_ID, BOS_ID, USER_ID, ASSISTANT_ID] == [0, 1, 2, 3, 4]
    assert tokenizer.get_vocab_size() == 2048


def test_chat_prompt(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("sort: 5 3 9 1", add_special_tokens=False).ids
    assert tokenizer.encode("sort: 5 3 9 1").ids == [BOS_ID, USER_ID, *plain, ASSISTANT_ID]
    assert tokenizer.decode([BOS_ID, *plain, EOS_ID, MASK_ID]) == "sort: 5 3 9 1"


def test_what_is_encoded_comes_back(tokenizer: Tokenizer) -> None:
    texts = [text for e in heldout(30, 0) for text in (e.prompt, e.answer)]
    texts += documents("heldout")
    texts += ["", " ", "\n\n  a\t", "naïve 中文 🙂 ½", "".join(map(chr, range(1, 300)))]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sort: 5 31", ["sort", ":", " 5", " 3", "1"]),
        ("7+3+0=10, 2", ["7", "+", "3", "+", "0", "=", "1", "0", ",", " 2"]),
        ("7*6+0=42: 2082", ["7", "*", "6", "+", "0", "=", "4", "2", ":", " 2", "0", "8", "2"]),
        ("4.7*1000 = 4700 m", ["4", ".", "7", "*", *"1000", " =", " 4", *"700", " m"]),
        ("z a q", ["z", " a", " q"]),
        ("( [ ] {", ["(", " [", " ]", " {"]),
        ('"age": 31, "x"', ['"', "age", '":', " 3", "1", ",", ' "', "x", '"']),
        ("name: fig, price: 7", ["name", ":", " fig", ",", " price", ":", " 7"]),
    ],
)
def test_pieces_are_regular(
    text: str, expected: list[str], pieces: Callable[[str], list[str]]
) -> None:
    assert pieces(text) == expected


def test_digits_letters_and_words_are_one_token(pieces: Callable[[str], list[str]]) -> None:
    for piece in string.ascii_lowercase + string.digits:
        assert pieces(piece) == [piece] and pieces(" " + piece) == [" " + piece]
    for word in KEYS + WORDS:
        assert pieces(word) == [word]


def test_every_byte_has_a_token_and_no_token_has_two_digits(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.get_vocab()
    assert sum(len(token) == 1 for token in tokens) == 256
    assert not [token for token in tokens if sum(c.isdigit() for c in token) > 1]


def test_long_tasks_have_long_answers(tokenizer: Tokenizer) -> None:
    def median_tokens(task: str) -> float:
        drawn = islice(examples("train", 0, {task: TASKS[task]}), 300)
        encoded = tokenizer.encode_batch([e.answer for e in drawn], add_special_tokens=False)
        return statistics.median(len(answer.ids) for answer in encoded)

    medians = {task: median_tokens(task) for task in TASKS}
    assert tuple(task for task in TASKS if medians[task] >= 24) == LONG_TASKS, medians


def test_a_seed_decides_the_tokenizer(monkeypatch: pytest.MonkeyPatch, small_library: None) -> None:
    monkeypatch.setattr(tokenizer_module, "TRAINING_EXAMPLES", 500)
    first, again, other = (train_tokenizer(seed, 512).to_str() for seed in (0, 0, 1))
    assert first == again != other


def test_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 261, got 260"):
        train_tokenizer(0, vocab_size=260)
