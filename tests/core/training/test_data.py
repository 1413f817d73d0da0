"""The mixture: batches are a function of seed, step and rank, and hold what they should."""

from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer

from dlm_core.tasks import split_of
from dlm_core.training import data
from dlm_core.training.data import TEXT_CHUNK, Mixture, chat_document
from dlm_core.training.rows import Masking, Rows
from dlm_core.training.tokenizer import ASSISTANT_ID, BOS_ID, EOS_ID, USER_ID


@pytest.fixture
def mixture(tokenizer: Tokenizer, small_library: None) -> Mixture:
    return Mixture(tokenizer, 0, text_share=0.3, row_length=224, tokens_per_batch=4000)


def clean_documents(rows: Rows) -> list[list[int]]:
    found = []
    for row in range(len(rows.tokens)):
        for number in range(int(rows.document[row].max()) + 1):
            at = (rows.document[row] == number) & (rows.block[row] < 0)
            found.append(rows.tokens[row, at].tolist())
    return found


def test_a_batch_depends_on_seed_step_and_rank_alone(mixture: Mixture) -> None:
    noise = Masking(0, 1)
    again = Mixture(mixture.tokenizer, 0, 0.3, 224, 4000)
    again.batch(6, noise)
    assert all(map(torch.equal, mixture.batch(7, noise), again.batch(7, noise)))
    other_seed = Mixture(mixture.tokenizer, 1, 0.3, 224, 4000)
    tokens = mixture.batch(7, noise).tokens
    for other in (mixture.batch(8, noise), mixture.batch(7, noise, 1), other_seed.batch(7, noise)):
        assert other.tokens.shape != tokens.shape or not torch.equal(other.tokens, tokens)


def test_nothing_held_out_is_learned_from(mixture: Mixture, tokenizer: Tokenizer) -> None:
    n_chats = n_texts = 0
    for step in range(10):
        for ids in clean_documents(mixture.batch(step, None)):
            assert ids[0] == BOS_ID
            if ids[1] == USER_ID:
                n_chats += 1
                assert ids[-1] == EOS_ID
                prompt = tokenizer.decode(ids[2 : ids.index(ASSISTANT_ID)])
                assert split_of(prompt) == "train"
            else:
                n_texts += 1
                assert len(ids) <= TEXT_CHUNK
    assert 0.2 < n_texts / (n_texts + n_chats) < 0.4


def test_real_text_is_that_of_the_training_split(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"train": ["of the training split " * 9], "heldout": ["held out " * 9]}
    monkeypatch.setattr(data, "documents", texts.__getitem__)
    mixture = Mixture(tokenizer, 0, 1.0, 224, 2000)
    found = [tokenizer.decode(ids) for ids in clean_documents(mixture.batch(0, None))]
    assert found and all("training" in text and "held" not in text for text in found)


def test_task_weights_make_a_task_likelier(tokenizer: Tokenizer) -> None:
    weights = {"sort": 24.0}  # 24 of 36
    mixture = Mixture(tokenizer, 0, 0.0, 224, 20_000, task_weights=weights)
    chats = clean_documents(mixture.batch(0, None))
    first = Counter(tokenizer.decode(ids[2:]).split()[0] for ids in chats)
    assert first["sort:"] / len(chats) == pytest.approx(24 / 36, abs=0.08)


def test_only_the_answer_of_a_chat_is_learned(tokenizer: Tokenizer) -> None:
    document = chat_document(tokenizer, "sort: 2 1", "1 2")
    assert document.tokens[document.start - 1] == ASSISTANT_ID
    assert tokenizer.decode(document.tokens[document.start :]) == "1 2"
    assert document.tokens[-1] == EOS_ID
