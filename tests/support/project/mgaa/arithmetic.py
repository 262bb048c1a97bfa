"""A library module that a method uses."""


def added(numbers: list[int]) -> int:
    """The sum."""
    return sum(numbers)
