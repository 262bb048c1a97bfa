"""Errors of the project, by who has to act.

Every error of the project carries one message that names the value, the expectation and the remedy. The class says who acts, and
`exit_code` is the exit code of a command that fails with it, so that a scheduler can tell a typo from a full disk without reading text.
A message goes to terminals, logs, MLflow and Prefect, so secrets are masked as soon as it is created.
"""

from mgaa.masking import masked


class MgaaError(Exception):
    """Any failure that the project itself detects and explains."""

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(masked(str(message)))


class UsageError(MgaaError):
    """A parameter is unknown, ill-typed or out of reach: change the configuration."""

    exit_code = 2


class InputError(MgaaError):
    """A model, data set or file is missing, damaged or unsupported: change the input."""

    exit_code = 3


class NumericalError(MgaaError):
    """A weight, an activation or a result is not finite: change the precision or the model."""

    exit_code = 4


class ResourceError(MgaaError):
    """Disk, memory or permission is lacking: make room and start again; completed steps are cached."""

    exit_code = 5


class LockedError(MgaaError):
    """Another run holds what this one needs: wait for it or stop it."""

    exit_code = 6
