"""A checkpoint with a tokenizer, and a record of made-up outcomes."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_bench.quality.evaluate import Setting
from dlm_bench.quality.grid import standard
from dlm_bench.quality.records import (
    SCHEMA,
    Checkpoint,
    OracleDiffusion,
    OracleDraft,
    Perplexity,
    QualityRecord,
    Result,
    Sample,
)
from dlm_core import Model, load_model
from dlm_roofline.records import Device, Skipped

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny-a"
TASKS = ["sort", "add", "python"]


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


@pytest.fixture
def made_up() -> Callable[..., QualityRecord]:
    """A record of the standard grid with outcomes drawn at random, right at the given rate."""
    return _made_up


def _made_up(rate: float = 0.9, complete: bool = True) -> QualityRecord:
    rng = random.Random(0)
    grid = standard(16, has_lora=True)
    n, few = 40 * len(TASKS), 10 * len(TASKS)
    sizes = [(setting, n) for setting in grid.headline] + [(each, few) for each in grid.rest]
    results = [_result(rng, setting, size, rate) for setting, size in sizes]
    tokens = results[0].tokens[:few]
    return QualityRecord(
        schema=SCHEMA,
        complete=complete,
        scope="standard",
        date="2026-01-02T03:04:05Z",
        commit="0123456789abcdef",
        dirty=False,
        command="dlm quality",
        backend="torch",
        versions={"torch": "2.13.0"},
        device=Device("cpu", "A Host", {"threads": "2"}),
        model=Checkpoint("small", "aa" * 16, "float32", 4_200_000, 16, True),
        code="bb" * 16,
        sample=Sample(
            seed=1, per_task=40, rest_per_task=10, passages=4, tasks=TASKS, hash="cc" * 16
        ),
        max_new_tokens=64,
        seconds=300.0,
        results=results,
        perplexities=[
            Perplexity("autoregressive", "answers", None, 1.25, 1.2, 1.3, 900, 1.0),
            Perplexity("bound", "answers", 8, 1.5, 1.4, 1.6, 900, 2.0),
            Perplexity("masked 0.5", "answers", 8, 1.4, 1.3, 1.5, 450, 2.0),
        ],
        oracle_diffusion=[
            OracleDiffusion(
                block,
                tokens,
                forwards=[max(1, t // 7) for t in tokens],
                forced=[i % 2 for i in range(few)],
                per_step=[[4, 3]] * few,
                seconds=1.0,
            )
            for block in grid.blocks
        ],
        oracle_drafts=[
            OracleDraft(
                16, lora, tokens, [[4, 3]] * few, [[6, 3]] * few, [["1110110", "11"]] * few, 1.0
            )
            for lora in (False, True)
        ],
        skipped=[Skipped("rule dream", "made for other models")],
    )


def _result(rng: random.Random, setting: Setting, n: int, rate: float) -> Result:
    """Faster where the threshold is lower or the steps are fewer, and then less often right."""
    speed, loss = 1.0, 0.0
    if setting.mode == "diffusion":
        eager = setting.threshold or (1 - (setting.steps or 4) / setting.block_length)
        speed = 1 + 3 * (1.1 - eager) + setting.block_length / 16
        loss = 0.5 * (1 - eager) ** 2
    elif setting.block_length:
        speed = 2 + setting.block_length / 16 + bool(setting.lora)
    tokens = [rng.randint(10, 40) for _ in range(n)]
    cycles = []
    if setting.mode == "linear_spec":
        cycles = [_cycles(rng, total - 1, setting.block_length) for total in tokens]
    forwards = [max(1, round(total / speed)) for total in tokens]
    right = [rng.random() < rate - loss for _ in tokens]
    digests, kinds = ["00"] * n, {"denoise": sum(forwards)}
    return Result(
        setting, right, tokens, forwards, digests, cycles, kinds, n / 40, len(TASKS) / 4, []
    )


def _cycles(rng: random.Random, left: int, block: int) -> list[int]:
    found = []
    while left > 0:
        found.append(rng.randint(1, block))
        left -= found[-1]
    return found
