"""The largest number."""


def combine(numbers: list[int]) -> int:
    """The maximum."""
    return max(numbers)
