"""Noise: Philox's words, the same on every backend, and uniform between 0 and 1."""

import torch
import triton
import triton.language as tl

from dlm_kernels import noise
from dlm_kernels.noise import philox, uniform

WORDS = 2**32


@triton.jit
def philox_kernel(seed_ptr, c0_ptr, c1_ptr, c2_ptr, stream, out_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    c0, c1, c2 = tl.load(c0_ptr + i), tl.load(c1_ptr + i), tl.load(c2_ptr + i)
    word, _, _, _ = tl.philox(tl.load(seed_ptr + i), c0, c1, c2, c0 * 0 + stream)
    tl.store(out_ptr + i, word.to(tl.int64))


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def test_known_answer() -> None:
    """The first word of Random123's known-answer test for a key and a counter of zeros."""
    assert philox(zeros(1), zeros(1), zeros(1), zeros(1), 0).tolist() == [0x6627E8D5]


def test_triton_draws_the_same_words(triton_device: str) -> None:
    """Of every word of the counter, and of both halves of the key."""
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 2**31 - 1, (3, 256), generator=generator, dtype=torch.int32)
    counters[:, :4] = torch.tensor([0, 1, 2**31 - 1, 7])
    seed = torch.randint(-(2**63), 2**63 - 1, (256,), generator=generator)
    seed[:4] = torch.tensor([0, -1, -(2**63), 2**63 - 1])
    for stream in (noise.SAMPLE, noise.RENOISE):
        out = torch.empty(256, dtype=torch.int64, device=triton_device)
        arguments = (x.to(triton_device) for x in (seed, *counters))
        philox_kernel[(1,)](*arguments, stream, out, SIZE=256)
        assert out.tolist() == philox(seed, *counters, stream).tolist()


def test_each_part_of_the_counter_and_each_bit_of_the_key_counts() -> None:
    one = torch.ones(1, dtype=torch.int64)
    draws = [philox(zeros(1), zeros(1), zeros(1), zeros(1), stream) for stream in range(5)]
    draws += [philox(zeros(1), one, zeros(1), zeros(1), 0)]
    draws += [philox(zeros(1), zeros(1), one, zeros(1), 0)]
    draws += [philox(zeros(1), zeros(1), zeros(1), one, 0)]
    draws += [philox(one << bit, zeros(1), zeros(1), zeros(1), 0) for bit in range(64)]
    assert len({int(draw) for draw in draws}) == 5 + 3 + 64


def test_broadcasts() -> None:
    seed, place = torch.tensor([[3], [4]]), torch.arange(5)
    together = philox(seed, zeros(1), place, zeros(1), noise.ACCEPT)
    assert together.shape == (2, 5)
    alone = philox(seed[1], zeros(1), place[2:3], zeros(1), noise.ACCEPT)
    assert together[1, 2] == alone[0]


def test_uniform_is_strictly_between_0_and_1() -> None:
    ends = uniform(torch.tensor([0, 511, 512, WORDS - 1]))
    assert ends.dtype == torch.float32
    assert ends.tolist() == [2**-24, 2**-24, 3 * 2**-24, 1 - 2**-24]
