"""Guests as objects in a script or a test: `Guest`, and the pytest plugin around it."""

from vmm.testing.guest import Guest, Result

__all__ = ["Guest", "Result"]
