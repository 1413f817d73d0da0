"""Peers do our ops' work: the same inputs give the same result."""

from functools import partial

import pytest
import torch

from dlm_bench import cases
from dlm_bench.cases import OTHER_CACHE, Case, difference
from dlm_core import PRESETS

CPU = torch.device("cpu")
NOT_ON_A_HOST = ("compiled", "efficient", "cuDNN", "FlexAttention", "FlashAttention-3")
SMALL = {"dtype": torch.float32, "config": PRESETS["tiny"]}

confidence_case = partial(cases.confidence_case, **SMALL)
attention_case = partial(cases.attention_case, **SMALL)
remask_case = partial(cases.remask_case, **SMALL)


@pytest.mark.parametrize(
    "case",
    [
        confidence_case(2),
        confidence_case(2, all_statistics=True),
        cases.lm_head_case(2, 40, **SMALL),
        remask_case(5),
        attention_case(2, 0),
        attention_case(2, 77),
    ],
    ids=["confidence", "all statistics", "head", "remask", "attention", "attention with context"],
)
def test_peers_agree_with_the_op(case: Case) -> None:
    torch.manual_seed(1)
    work = case.build(CPU)
    ours = work.view(work.run())
    ran = 0
    for name, peer in work.peers.items():
        if not name.endswith(NOT_ON_A_HOST):
            assert difference(ours, work.view(peer())) < 1e-5, name
            ran += 1
    assert ran >= 1


def test_a_float8_cache_is_near_the_one_it_was_made_from() -> None:
    torch.manual_seed(1)
    case = attention_case(2, 300, float8=True)
    work = case.build(CPU)
    ours = work.view(work.run())
    apart = difference(ours, work.view(work.peers[OTHER_CACHE]()))
    assert 1e-3 < apart < case.tolerance


def test_a_wrong_result_is_seen() -> None:
    work = attention_case(1, 40).build(CPU)
    ours = work.view(work.run())
    theirs = tuple(tensor.clone() for tensor in ours)
    theirs[0][0, 3, 1, 5] += 0.5
    assert difference(ours, theirs) > 0.1
    theirs[0][0, 3, 1, 5] = float("nan")
    assert not difference(ours, theirs) <= 1e9


def test_on_the_host_each_peer_that_needs_a_gpu_says_so() -> None:
    peers = confidence_case(1).build(CPU).peers | attention_case(1, 8).build(CPU).peers
    for name in ("fp32 softmax, max, compiled", "FlexAttention", "cat + FlexAttention"):
        with pytest.raises(RuntimeError, match="on a GPU only"):
            peers[name]()


def test_a_reset_case_does_the_same_again() -> None:
    work = remask_case(3).build(CPU)
    first = [tensor.clone() for tensor in work.view(work.run())]
    work.reset()
    assert difference(tuple(first), work.view(work.run())) == 0
