"""Packed rows: what is under a mask, what is a target, and what a document keeps to itself."""

import random
from collections import Counter

import pytest

from dlm_core.training.rows import IGNORED, Document, Masking, Rows, pack

MASK, EOS = 0, 1
ANSWER = Document([2, 10, 11, 12, 20, 21, 22, 23, EOS], start=4)


def packed(
    *documents: Document, noise: Masking | None = None, seed: int = 0, length: int = 128
) -> Rows:
    return pack(documents, noise, length, 10**6, random.Random(seed))


def test_clean_stream_predicts_the_next_token_of_the_answer() -> None:
    rows = packed(ANSWER)
    n = len(ANSWER.tokens)
    assert rows.tokens[0, :n].tolist() == ANSWER.tokens
    assert rows.positions[0, :n].tolist() == list(range(n))
    assert rows.targets[0, :n].tolist() == [IGNORED] * 3 + ANSWER.tokens[4:] + [IGNORED]
    assert (rows.document[0, n:] == -1).all() and (rows.targets[0, n:] == IGNORED).all()
    assert (rows.block == -1).all()


@pytest.mark.parametrize("seed", range(20))
def test_noisy_blocks_hold_the_answer_under_masks(seed: int) -> None:
    rows = packed(ANSWER, noise=Masking(MASK, EOS, block_lengths=(4,)), seed=seed)
    noisy = rows.block[0] >= 0
    for block in rows.block[0, noisy].unique():
        at = rows.block[0] == block
        positions = rows.positions[0, at].tolist()
        begin = int(rows.block_start[0, at][0])
        assert positions == list(range(begin, begin + 4)) and begin >= ANSWER.start
        clean = [ANSWER.tokens[p] if p < len(ANSWER.tokens) else EOS for p in positions]
        for token, target, true in zip(
            rows.tokens[0, at].tolist(), rows.targets[0, at].tolist(), clean, strict=True
        ):
            assert (token, target) in ((MASK, true), (true, IGNORED))
        assert (rows.tokens[0, at] == MASK).any()


def test_a_text_cut_off_is_not_followed_by_ends() -> None:
    cut = Document([2, 10, 11, 12, 13, 14])
    rows = packed(cut, noise=Masking(MASK, EOS, block_lengths=(32,)))
    assert EOS not in rows.targets[0] and rows.positions.max() == len(cut.tokens) - 1


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"keep_first": 0.0}, [0.25, 0.25, 0.25, 0.25]),
        # Half of the blocks, and a quarter of the other half.
        ({"keep_first": 0.0, "all_masked": 0.5}, [0.125, 0.125, 0.125, 0.625]),
        # A clean first token leaves three to mask, from one to all of them.
        ({"keep_first": 0.75}, [0.3125, 0.3125, 0.3125, 0.0625]),
    ],
)
def test_so_many_masks_are_so_likely_and_weights_even_them_out(
    options: dict, shares: list[float]
) -> None:
    noise = Masking(MASK, EOS, block_lengths=(4,), **options)
    document = Document([2, 10, 11, 12, EOS], start=1)
    counts, totals, n = Counter(), set(), 1600
    for seed in range(n):
        rows = packed(document, noise=noise, seed=seed)
        at = (rows.block[0] == 0) & (rows.targets[0] != IGNORED)
        counts[int(at.sum())] += 1
        totals.add(round(float(rows.weights[0, at].sum()), 4))
    for masks, share in enumerate(shares, 1):
        deviation = (share * (1 - share) / n) ** 0.5
        assert abs(counts[masks] / n - share) < 5 * deviation, counts
    assert totals == ({3, 4} if options["keep_first"] else {4})


def test_drafts_see_a_clean_first_token_and_masks_alone() -> None:
    noise = Masking(MASK, EOS, block_lengths=(4,), keep_first=1.0, all_masked=1.0)
    rows = packed(ANSWER, noise=noise)
    for block in rows.block[0, rows.block[0] >= 0].unique():
        tokens = rows.tokens[0, rows.block[0] == block].tolist()
        assert tokens[0] != MASK and tokens[1:] == [MASK] * 3


def test_documents_are_packed_whole_and_none_is_lost() -> None:
    rng = random.Random(3)
    documents = [
        Document([2, *rng.choices(range(5, 99), k=rng.randint(3, 40)), EOS]) for _ in range(60)
    ]
    rows = packed(*documents, noise=Masking(MASK, EOS, block_lengths=(8,)))
    found = []
    for row in range(len(rows.tokens)):
        for number in rows.document[row].unique():
            if number >= 0:
                at = (rows.document[row] == number) & (rows.block[row] < 0)
                found.append(tuple(rows.tokens[row, at].tolist()))
                whole = rows.document[row] == number
                first = int(whole.nonzero()[0])
                assert whole[first : first + int(whole.sum())].all(), "a document lies in one piece"
    assert Counter(found) == Counter(tuple(document.tokens) for document in documents)
    filled = (rows.document >= 0).float().mean()
    assert filled > 0.85
    for row in range(len(rows.tokens)):
        # Blocks of different documents never share a number.
        pairs = {
            (int(b), int(d))
            for b, d in zip(rows.block[row], rows.document[row], strict=True)
            if b >= 0
        }
        assert len({block for block, _ in pairs}) == len(pairs)


def test_max_tokens_counts_both_streams() -> None:
    endless = iter(lambda: ANSWER, None)
    rows = pack(endless, Masking(MASK, EOS), 128, 500, random.Random(0))
    n_tokens = int((rows.document >= 0).sum())
    assert 500 <= n_tokens < 500 + 128


def test_rows_are_as_long_as_the_longest_document_needs() -> None:
    assert packed(ANSWER, length=8).tokens.shape == (1, len(ANSWER.tokens))
