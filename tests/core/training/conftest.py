"""A recipe that trains in seconds, and the small model's tokenizer for all tests."""

import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dlm_core import SMALL_MODEL
from dlm_core.training import text
from dlm_core.training.recipe import SMALL, Recipe


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SMALL_MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def small_library() -> Iterator[None]:
    """Real text is that of asyncio alone: to parse the whole standard library takes seconds."""
    root = Path(sysconfig.get_path("stdlib")) / "asyncio"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text.sysconfig, "get_path", lambda _: str(root))
        yield


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    model = replace(
        SMALL.model,
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
        ar_steps=16,
        joint_steps=20,
        draft_steps=6,
        tokens_per_step=500,
        row_length=224,
        text_share=0.0,
        warmup=3,
        save_every=5,
    )
