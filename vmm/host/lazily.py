"""Imports put off until somebody uses what they bring."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands for a module in those that were imported `lazily`."""

    def __getattr__(self, name: str) -> Any:
        _withdraw(self)
        return getattr(import_module(self.__name__), name)


def _withdraw(module: ModuleType) -> None:
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]


@contextmanager
def lazily(*names: str) -> Iterator[None]:
    """What is imported within has these modules, as far as nobody imported them before, loaded at their first use."""
    later = [_Later(name) for name in names if name not in sys.modules]
    sys.modules.update((module.__name__, module) for module in later)
    try:
        yield
    finally:
        for module in later:
            _withdraw(module)
