"""Numbers as tables and pictures write them."""


def three_digits(value: float) -> str:
    """Three significant digits, without an exponent unless the value is tiny."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if size >= 1e-3 or size == 0 else f"{value:.1e}"


def percent(share: float) -> str:
    """Whole percents, and one digit more below ten."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def with_prefix(value: float, unit: str) -> str:
    """Three significant digits and the SI prefix that fits, as in "4.80 TB/s"."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= 0.9995 * scale:
            return f"{three_digits(value / scale)} {prefix}{unit}"
    return f"{three_digits(value)} {unit}"
