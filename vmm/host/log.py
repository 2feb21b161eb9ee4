"""Structured logs on stderr, by structlog.

structlog is imported when the first record is due, not before: its import costs as much as the rest of the start.
"""

import sys
from contextlib import suppress
from typing import Any, TextIO, cast

LEVELS = ("debug", "info", "warning", "error")


class _Settings:
    """How the process logs; set once by the command line, before any thread starts."""

    level = "warning"
    json = False
    configured = False


def configure(level: str, *, json: bool) -> None:
    """Choose the lowest level that is shown, and JSON lines instead of text."""
    _Settings.level, _Settings.json, _Settings.configured = level, json, False


class _Stderr:
    """Standard error as it is now.  A log that nobody can read any more must not end the thread that writes it."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError, AttributeError):  # a reader that has gone, a closed file, none at all
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()


class Logger:
    """A named logger; keyword arguments become fields."""

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        """What only who looks for a fault wants to see."""
        self._emit("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What happens."""
        self._emit("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What somebody should know."""
        self._emit("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """What has failed."""
        self._emit("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception in hand, at level debug only."""
        if _Settings.level == "debug":
            fields["exc_info"] = True
        self._emit("error", event, fields)

    def _emit(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if LEVELS.index(level) < LEVELS.index(_Settings.level):
            return
        import structlog

        if not _Settings.configured:
            _Settings.configured = True
            renderer: Any = (
                structlog.processors.JSONRenderer()
                if _Settings.json
                else structlog.dev.ConsoleRenderer(colors=sys.stderr is not None and sys.stderr.isatty())
            )
            structlog.configure(
                processors=[
                    structlog.processors.add_log_level,
                    structlog.processors.TimeStamper(fmt="iso"),
                    structlog.processors.format_exc_info,
                    renderer,
                ],
                logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
            )
        getattr(structlog.get_logger(), level)(event, logger=self._name, **fields)


def get(name: str) -> Logger:
    """The logger of a module."""
    return Logger(name)
