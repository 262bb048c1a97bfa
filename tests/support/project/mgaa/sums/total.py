"""The sum of all numbers."""


def combine(numbers: list[int]) -> int:
    """The sum, by a module imported late."""
    from mgaa.arithmetic import added

    return added(numbers)
