"""The device error word and what the host makes of it."""

import pytest
import torch

from dlm_kernels import DeviceError, error_word, new_error_word, raise_on_error

BITS = {
    error_word.NAN_LOGITS: "NaN",
    error_word.LENGTH_OUT_OF_RANGE: "context length",
    error_word.ID_OUT_OF_RANGE: "banned id",
    error_word.NO_CANDIDATE: "candidate",
    error_word.PAGE_OUT_OF_RANGE: "block table",
}


def test_a_new_word_is_clear(device: str) -> None:
    word = new_error_word(device)
    assert word.dtype == torch.int32 and word.shape == (1,) and word.device.type == device
    raise_on_error(word)
    raise_on_error(0)


def test_every_bit_is_its_own_and_has_words() -> None:
    assert sorted(BITS) == [1 << n for n in range(len(BITS))]
    for bit, words in BITS.items():
        with pytest.raises(DeviceError, match=words) as raised:
            raise_on_error(bit)
        assert ";" not in str(raised.value)


def test_all_set_bits_are_named(device: str) -> None:
    word = new_error_word(device).fill_(sum(BITS))
    with pytest.raises(DeviceError) as raised:
        raise_on_error(word)
    assert all(words in str(raised.value) for words in BITS.values())


def test_a_word_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"error has shape \[2\]"):
        raise_on_error(torch.zeros(2, dtype=torch.int32))


def test_an_unknown_bit_is_still_an_error() -> None:
    with pytest.raises(DeviceError, match="0x400"):
        raise_on_error(0x400)


def test_a_device_error_is_a_runtime_error() -> None:
    assert issubclass(DeviceError, RuntimeError)
