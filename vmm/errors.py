"""What can go wrong, for the person who runs pyvmm: one sentence each, and the exit status that goes with it."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of `pyvmm run`; documented in README.md."""

    POWERED_OFF = 0
    FAILED = 1
    USAGE = 2
    CRASHED = 3
    TIMED_OUT = 4
    UNSUPPORTED_HOST = 5
    INTERRUPTED = 130


class PyvmmError(Exception):
    """Something failed; the text is one sentence that says what, on what, and what to do."""

    exit_status = ExitStatus.FAILED


class UsageError(PyvmmError):
    """What the user asked for cannot be meant."""

    exit_status = ExitStatus.USAGE


class GuestError(PyvmmError):
    """A guest did not do what a script asked of it."""


class HostError(PyvmmError):
    """This host cannot do what is asked."""

    exit_status = ExitStatus.UNSUPPORTED_HOST
