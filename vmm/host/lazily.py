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
    with standing_in(*map(_Later, names)):
        yield


@contextmanager
def standing_in(*modules: ModuleType) -> Iterator[None]:
    """What is imported within gets these instead of the modules of their names, as far as nobody imported those before."""
    placed = [module for module in modules if module.__name__ not in sys.modules]
    sys.modules.update((module.__name__, module) for module in placed)
    try:
        yield
    finally:
        for module in placed:
            _withdraw(module)
