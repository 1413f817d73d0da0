"""A recipe that trains in seconds, and a tokenizer that all tests share."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from dlm_core.training.recipe import SMALL, Recipe
from dlm_core.training.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(0, 512)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    model = replace(
        SMALL.model,
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return replace(
        SMALL,
        model=model,
        ar_steps=20,
        joint_steps=30,
        draft_steps=12,
        tokens_per_step=800,
        text_share=0.0,
        warmup=5,
        save_every=5,
    )
