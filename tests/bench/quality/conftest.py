"""A checkpoint with a tokenizer, and records of made-up outcomes."""

import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from dlm_bench.quality import records
from dlm_bench.quality.records import Apart, Checkpoint, Decoded, QualityRecord, Result
from dlm_bench.quality.settings import WAYS, Setting, standard
from dlm_core import Model, load_model
from dlm_roofline.records import Device

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny-a"
TASKS = ["sort", "add", "python"]
MADE = {
    "complete": True, "scope": "standard", "date": "2026-01-02T03:04:05Z", "commit": "0123456789",
    "dirty": False, "command": "dlm quality", "backend": "torch", "versions": {"torch": "2.13.0"},
    "device": Device("cpu", "A Host", {"threads": "2"}), "code": "bb" * 16,
    "model": Checkpoint("small", "aa" * 16, "float32", block_size=16, has_draft_lora=True),
}  # fmt: skip


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-a, which goes on counting, with a tokenizer that reads its ids as numbers."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("checkpoint") / "counting"
    shutil.copytree(GOLDEN, folder)
    words = {"<unk>": 0, "<begin>": 1, "<end>": 2, "<mask>": 3}
    words |= {str(number): number for number in range(4, 67)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<begin>", "<end>", "<mask>"])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Model:
    return load_model(checkpoint)


def quality_record(
    results: Iterable[Result], per_task: int, common: int, tasks: list[str], **more
) -> QualityRecord:
    sample = records.Sample(1, per_task, common, 64, tasks)
    return QualityRecord(**(MADE | more), sample=sample, results=list(results))


def made_up(rate: float = 0.9, **more) -> QualityRecord:
    """The standard grid on 40 or 10 examples of each of TASKS: outcomes drawn at random, AR right
    at about `rate`. Diffusion is the faster and the less often right the lower its threshold.
    """
    rng = random.Random(0)
    grid = standard(16, True).items()
    results = [_result(rng, each, 40 if n == 168 else 10, rate) for each, n in grid]
    near = Apart(0.02, 0.31, 1.5e-3, 0.9875), Apart(0.03, 0.4, 2.5e-3, 0.9)
    more["closeness"] = [records.Closeness(*way, 8.25, 80, *near) for way in WAYS]
    more["oracles"] = [records.Oracle(block, [2] * 30) for block in (8, 16, 32)]
    return quality_record(results, 40, 10, TASKS, **more)


def _result(rng: random.Random, setting: Setting, per_task: int, rate: float) -> Result:
    eager = 1 - (setting.threshold or 0.7) if setting.mode == "diffusion" else 0
    speed = 1 + 8 * eager + (setting.block_length or 0) / 16
    decoded = []
    for _ in range(per_task * len(TASKS)):
        tokens = rng.randint(10, 40)
        right, forwards = rng.random() < rate - eager / 2, max(1, round(tokens / speed))
        decoded.append(Decoded(right, tokens, forwards, "AAAA"))
    return Result.of(setting, decoded, seconds=0.75)
