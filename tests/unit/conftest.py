"""For all unit tests."""

import tests.properties  # noqa: F401
