"""Numbers as people read them."""

import pytest

from dlm_roofline.text import percent, three_digits, with_prefix

DIGITS = {
    0: "0.00", 9.99e-4: "1.0e-03", 1e-3: "0.00100", 0.01234: "0.0123", 1.0: "1.00", 9.994: "9.99",
    9.996: "10.0", 99.94: "99.9", 99.96: "100", 999.6: "1,000", 1234567: "1,234,567", -270: "-270",
}  # fmt: skip
PERCENTS = {
    0: "0.0%", 1e-9: "<0.1%", 0.00099: "<0.1%", 0.001: "0.1%", 0.0994: "9.9%", 0.0996: "10%",
    0.1: "10%", 0.126: "13%", 1: "100%", 1.5: "150%",
}  # fmt: skip
PREFIXES = {
    0: "0.00 B/s", 999: "999 B/s", 999_400: "999,400 B/s", 999_600: "1.00 MB/s", 1e6: "1.00 MB/s",
    999.6e6: "1.00 GB/s", 51.2e9: "51.2 GB/s", 4.8e12: "4.80 TB/s", 9.9e14: "990 TB/s",
    1.979e15: "1.98 PB/s",
}  # fmt: skip


@pytest.mark.parametrize(("value", "text"), DIGITS.items())
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


@pytest.mark.parametrize(("share", "text"), PERCENTS.items())
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(("value", "text"), PREFIXES.items())
def test_with_prefix(value: float, text: str) -> None:
    assert with_prefix(value, "B/s") == text
