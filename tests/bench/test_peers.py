"""Peers do our ops' work: the same inputs give the same result."""

import pytest
import torch

from dlm_bench import cases
from dlm_bench.cases import (
    OTHER_CACHE,
    attention_case,
    confidence_case,
    difference,
    lm_head_case,
    remask_case,
)
from dlm_core import PRESETS

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid's cases over the heads and the vocabulary of the smallest preset."""
    monkeypatch.setattr(cases, "CONFIG", PRESETS["tiny"])


@pytest.mark.parametrize(
    "case",
    [
        lambda: confidence_case(2, torch.float32),
        lambda: confidence_case(2, torch.float32, all_statistics=True),
        lambda: lm_head_case(2, 40, torch.float32, config=PRESETS["tiny"]),
        lambda: remask_case(5, torch.float32),
        lambda: attention_case(2, 0, torch.float32),
        lambda: attention_case(2, 77, torch.float32),
    ],
    ids=["confidence", "all statistics", "head", "remask", "attention", "attention with context"],
)
def test_peers_agree_with_the_op(small: None, case) -> None:
    torch.manual_seed(1)
    case = case()
    work = case.build(CPU)
    ours = work.view(work.run())
    ran = 0
    for name, peer in work.peers.items():
        if isinstance(peer, str):
            continue
        try:
            theirs = work.view(peer())
        except RuntimeError as error:
            assert name.endswith(("efficient", "cuDNN")), f"{name}: {error}"  # CUDA only
            continue
        assert difference(ours, theirs) < 1e-5, name
        ran += 1
    assert ran >= 1


def test_a_float8_cache_is_near_the_one_it_was_made_from(small: None) -> None:
    torch.manual_seed(1)
    case = attention_case(2, 300, torch.float32, float8=True)
    work = case.build(CPU)
    ours = work.view(work.run())
    apart = difference(ours, work.view(work.peers[OTHER_CACHE]()))
    assert 1e-3 < apart < case.tolerance


def test_a_wrong_result_is_seen(small: None) -> None:
    work = attention_case(1, 40, torch.float32).build(CPU)
    ours = work.view(work.run())
    theirs = tuple(tensor.clone() for tensor in ours)
    theirs[0][0, 3, 1, 5] += 0.5
    assert difference(ours, theirs) > 0.1
    theirs[0][0, 3, 1, 5] = float("nan")
    assert not difference(ours, theirs) <= 1e9


def test_on_the_host_each_peer_that_needs_a_gpu_says_so(small: None) -> None:
    confidence = confidence_case(1, torch.float32).build(CPU).peers
    attention = attention_case(1, 8, torch.float32).build(CPU).peers
    assert "GPU" in confidence["fp32 softmax, max, compiled"]
    assert "GPU" in attention["FlexAttention"] and "GPU" in attention["cat + FlexAttention"]


def test_a_reset_case_does_the_same_again(small: None) -> None:
    work = remask_case(3, torch.float32).build(CPU)
    first = [tensor.clone() for tensor in work.view(work.run())]
    work.reset()
    assert difference(tuple(first), work.view(work.run())) == 0
