"""What is searched: every entry, with calls that agree with themselves."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from dlm_bench.tuning.inputs import Sizes
from dlm_bench.tuning.search import Search
from dlm_bench.tuning.space import Space
from dlm_bench.tuning.spaces import spaces
from dlm_core import PRESETS
from dlm_kernels import launch

# What time does not decide: bytes of memory, and what shards on several kinds of devices share.
GIVEN = {"lm_head_confidence": {"library_logits", "chunk"}}

SMALL = Sizes(
    replace(
        PRESETS["tiny"],
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        block_size=2,
    ),
    rows=(1, 2, 3),
    main=2,
    odd=(40, 19),
    contexts={20: (1, 2)},
    batches=(1, 2),
    dtypes={2: torch.float16, 4: torch.float32},
)


def named(name: str, arch: str) -> Space:
    return next(each for each in spaces(arch, 132, SMALL) if each.name == name)


def entries_of(table: dict, *path: object) -> list[tuple]:
    """Paths of the entries in a table of launch files."""
    if not isinstance(table, dict):
        return [path]
    return [found for key, each in table.items() for found in entries_of(each, *path, key)]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_every_entry_of_every_table_is_searched_once(arch: str) -> None:
    table = launch.read_table(launch.FOLDER / f"{arch}.json")
    del table["shared_memory"]
    found = spaces(arch, 132, Sizes())
    assert sorted(map(str, entries_of(table))) == sorted(str((x.op, *x.keys)) for x in found)
    assert [x.name for x in found[:3]] == [
        "linear 2",
        "lm_head_confidence 2",
        "block_attention 2 128",
    ]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_every_field_of_an_entry_is_searched_and_the_present_one_is_legal(arch: str) -> None:
    for space in spaces(arch, 132, Sizes()):
        entry = space.entry(arch)
        assert space.legal(entry), space.name
        searched = {*space.fields, *space.last_tile_fields, space.crossover, "tiles", "tuned"}
        given = GIVEN.get(space.op, set())
        if space.name in ("linear fp8", "linear int8", "linear int4"):
            given = {"library_rows"}  # no library takes their weights
        assert {each.name for each in fields(entry)} <= searched | given, space.name
        for tile in getattr(entry, "tiles", {}).values():
            assert {each.name for each in fields(tile)} == set(space.tile_fields), space.name
        for values in (*space.fields.values(), *space.tile_fields.values()):
            assert list(values) == sorted(values)


def test_a_norm_is_timed_on_rows_that_its_entry_serves() -> None:
    entries = launch.RESIDUAL_NORM["sm_90"]
    for space in spaces("sm_90", 132, Sizes()):
        if space.op == "residual_norm":
            hidden = int(space.series[0].name.removeprefix("hidden "))
            assert launch.smallest_serving(entries, hidden) is space.entry("sm_90")


@pytest.mark.parametrize(
    "name",
    [
        "linear 2",
        "linear int8",
        "lm_head_confidence 2",
        "block_attention 2 64",
        "confidence",
        "remask_scatter 32",
        "residual_norm 1024",
        "gated_silu",
        "rope_kv_write",
    ],
)
def test_the_calls_of_an_op_agree_with_themselves(
    name: str, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller calls with larger ones too, in the interpreter, and with the right number of rows."""
    monkeypatch.setenv("DLM_BACKEND", "triton")
    device = torch.device(triton_device)
    arch = launch.arch_of(device)
    space, timed = named(name, arch), []

    def clock(call: Any, seconds: float) -> float:
        call.reset()
        first = [each.clone() for each in call.result()]
        call.reset()
        assert all(map(torch.equal, first, call.result()))
        timed.append(call.run())
        return 1.0

    fixed = replace(space, fields={}, tile_fields={}, last_tile_fields={})
    search = Search(fixed, arch, device, clock)
    search.run(math.inf)
    assert search.finished and search.best == search.present and not search.dropped and timed
    shapes = search._shapes(timed_only=False)
    assert search._compare(search.present, shapes, search.present, space.tolerance)
    for series, size in shapes:
        assert all(len(each) == size for each in search._result(search.present, (series, size)))
