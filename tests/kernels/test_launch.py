"""Launch tables: an entry for everything, and the right one for any device."""

from pathlib import Path

import pytest
import torch

from dlm_kernels import launch

ROOT = Path(__file__).parents[2]

ARCHES = ["sm_80", "sm_90", "sm_100", "sm_120"]
TABLES = {
    "block_attention": launch.BLOCK_ATTENTION,
    "confidence": launch.CONFIDENCE,
    "linear": launch.LINEAR,
    "lm_head_confidence": launch.LM_HEAD,
    "remask_scatter": launch.REMASK_SCATTER,
    "residual_norm": launch.RESIDUAL_NORM,
    "gated_silu": launch.GATED_SILU,
    "rope_kv_write": launch.ROPE_KV_WRITE,
}


@pytest.fixture(autouse=True)
def small_launches() -> None:
    """Not here: these tests are about the tables that ship."""


def test_every_table_has_every_architecture() -> None:
    for table in (launch.SHARED_MEMORY, *TABLES.values()):
        assert list(table) == ARCHES


def is_tile(*sizes: int) -> bool:
    """Tiles are powers of two, and tl.dot needs 16 of everything."""
    return all(size >= 16 and size & (size - 1) == 0 for size in sizes)


@pytest.mark.parametrize("arch", ARCHES)
def test_every_shape_has_an_entry(arch: str) -> None:
    for itemsize in (2, 4):
        for head_dim in (16, 32, 64, 128, 256):
            entry = launch.smallest_serving(launch.BLOCK_ATTENTION[arch][itemsize], head_dim)
            assert is_tile(entry.block_m, entry.block_n)
            # A tile may not lie across two splits: a key's tile would depend on the split.
            assert entry.split_keys % entry.block_n == 0
            assert entry.far_from % entry.split_keys == 0
            assert entry.far_split_keys % entry.block_n == 0
            # q, and keys and values of each stage.
            tiles = entry.block_m + 2 * entry.num_stages * entry.block_n
            assert tiles * head_dim * itemsize <= launch.SHARED_MEMORY[arch]
        head = launch.LM_HEAD[arch][itemsize]
        for most, tile in head.tiles.items():
            assert is_tile(head.block_v, head.block_k, tile.block_r) and tile.block_r >= most
            stages = tile.num_stages * (head.block_v + tile.block_r) * head.block_k * itemsize
            assert stages <= launch.SHARED_MEMORY[arch]
        assert head.chunk % head.block_v == 0
        # Of 2048 rows over 131072 ids, under 2% of float32 logits.
        assert head.library_logits * itemsize < 0.02 * 4 * 2048 * 131072
        # Machines of any kind may share a vocabulary.
        assert head.chunk == launch.LM_HEAD["sm_90"][itemsize].chunk
    for block in range(1, 257):
        entry = launch.smallest_serving(launch.REMASK_SCATTER[arch], block)
        assert entry.compare & (entry.compare - 1) == 0
    assert launch.CONFIDENCE[arch].chunk % (32 * launch.CONFIDENCE[arch].num_warps) == 0
    for hidden in (1, 1024, 1025, 16384):
        assert launch.smallest_serving(launch.RESIDUAL_NORM[arch], hidden)
    for size in (launch.GATED_SILU[arch].block, launch.ROPE_KV_WRITE[arch].elements):
        assert size & (size - 1) == 0


@pytest.mark.parametrize("arch", ARCHES)
def test_linear_has_an_entry_for_every_weight(arch: str) -> None:
    assert list(launch.LINEAR[arch]) == [2, 4, "fp8", "int8", "int4"]
    for key, config in launch.LINEAR[arch].items():
        # A segment of 128 features or more has to be whole tiles, and an int4 tile is a group.
        assert 128 % config.block_k == 0 and config.block_k >= 16
        assert key != "int4" or config.block_k == 128
        stored = {"fp8": 1, "int8": 1, "int4": 0.5}.get(key, key)
        for tile in config.tiles.values():
            assert is_tile(tile.block_o, tile.block_r, config.walking_rows)
            # The plan of segments counts rows of the weight by the smallest tile.
            assert tile.block_o % 64 == 0
            row = tile.block_o * stored + tile.block_r * (key if key == 4 else 2)
            assert tile.num_stages * row * config.block_k <= launch.SHARED_MEMORY[arch]


@pytest.mark.parametrize("arch", ARCHES)
def test_every_entry_names_legal_warps_and_is_untuned_until_measured(arch: str) -> None:
    measured = any((ROOT / "bench" / "results").glob("*.json"))
    left = [table[arch] for table in TABLES.values()]
    while left:
        entry = left.pop()
        if isinstance(entry, dict):
            left += entry.values()
            continue
        left += getattr(entry, "tiles", {}).values()
        assert getattr(entry, "num_warps", 1) in (1, 2, 4, 8, 16, 32)
        assert measured or not getattr(entry, "tuned", False)


def test_another_entry_is_launched_with_while_it_overrides() -> None:
    present = launch.LINEAR["sm_90"]["int4"]
    with launch.overriding(launch.LINEAR, ("sm_90", "int4"), "other"):
        assert launch.LINEAR["sm_90"]["int4"] == "other"
        with launch.overriding(launch.LINEAR, ("sm_90",), {2: "all others"}):
            assert launch.LINEAR["sm_90"] == {2: "all others"}
    assert launch.LINEAR["sm_90"]["int4"] is present
    with pytest.raises(RuntimeError), launch.overriding(launch.GATED_SILU, ("sm_80",), None):
        raise RuntimeError
    assert launch.GATED_SILU["sm_80"].block
    with pytest.raises(KeyError), launch.overriding(launch.GATED_SILU, ("sm_70",), None):
        pass
    assert "sm_70" not in launch.GATED_SILU


def test_the_smallest_that_is_large_enough_serves() -> None:
    entries = {64: "small", 256: "large", 128: "middle"}
    for size, entry in {1: "small", 64: "small", 65: "middle", 128: "middle", 129: "large"}.items():
        assert launch.smallest_serving(entries, size) == launch.tile_serving(entries, size) == entry
    assert launch.tile_serving(entries, 4096) == "large"


def on_device(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], shared_memory: int = 0
) -> torch.device:
    """A device that says this of itself."""
    launch._largest_that_fits.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(launch, "_shared_memory_of", lambda device: shared_memory)
    return torch.device("cuda", 0)


def test_a_device_with_a_table_runs_it(monkeypatch: pytest.MonkeyPatch, recwarn) -> None:
    for capability, arch in zip(((8, 0), (9, 0), (10, 0), (12, 0)), ARCHES, strict=True):
        assert launch.arch_of(on_device(monkeypatch, capability)) == arch
    assert launch.arch_of(torch.device("cpu")) == "sm_90"  # the interpreter's
    assert not recwarn.list


@pytest.mark.parametrize(
    ("capability", "shared_memory", "arch"),
    [
        pytest.param((8, 6), 101_376, "sm_120", id="A10"),
        pytest.param((8, 7), 166_912, "sm_80", id="Orin"),
        pytest.param((8, 9), 101_376, "sm_120", id="L40S"),
        pytest.param((10, 3), 232_448, "sm_100", id="B300"),
        pytest.param((11, 0), 232_448, "sm_100", id="Thor"),
        pytest.param((12, 1), 101_376, "sm_120", id="GB10"),
        pytest.param((17, 5), 300_000, "sm_100", id="not-yet-built"),
    ],
)
def test_an_unknown_device_runs_the_largest_table_that_fits_and_says_so(
    capability: tuple[int, int], shared_memory: int, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = on_device(monkeypatch, capability, shared_memory)
    words = f"no launch table for sm_{capability[0]}{capability[1]}; it runs with that of {arch}"
    with pytest.warns(UserWarning, match=words):
        assert launch.arch_of(device) == arch
    assert launch.arch_of(device) == arch  # and says so once


@pytest.mark.parametrize(
    ("capability", "shared_memory", "message"),
    [
        ((8, 6), 65_536, "sm_86 gives a program 65536 bytes .*; .*101376"),
        ((7, 5), 65_536, "cuda:0 is sm_75; .*sm_80"),
        ((6, 1), 65_536, "cuda:0 is sm_61; .*sm_80"),
    ],
)
def test_a_device_too_old_or_small_is_an_error(
    capability: tuple[int, int], shared_memory: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = on_device(monkeypatch, capability, shared_memory)
    with pytest.raises(ValueError, match=message):
        launch.arch_of(device)


@pytest.mark.parametrize("arch", ARCHES)
def test_a_table_that_is_written_is_the_table_that_was_read(arch: str, tmp_path: Path) -> None:
    """To the byte, so that a tuned table differs from its predecessor in tuned entries alone."""
    file = launch.FOLDER / f"{arch}.json"
    launch.write_table(tmp_path / "written.json", launch.read_table(file))
    assert (tmp_path / "written.json").read_bytes() == file.read_bytes()
