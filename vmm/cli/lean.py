"""Two modules of the standard library that every start needs, without what they import and a start does not.

Together that is a fifteenth of a start's instructions.  Imported before everything else, by the console script alone.
"""

from types import ModuleType

from vmm.host.lazily import standing_in


def _quote_from_bytes(data: bytes) -> str:
    from urllib.parse import quote_from_bytes

    return quote_from_bytes(data)


_gettext, _urls = ModuleType("gettext"), ModuleType("urllib.parse")
# The commands speak English; gettext compiles a grammar of plural forms, and imports locale.
vars(_gettext).update(gettext=str, ngettext=lambda one, many, count: one if count == 1 else many)
# For Path.as_uri; urllib.parse imports ipaddress.
vars(_urls).update(quote_from_bytes=_quote_from_bytes)
with standing_in(_gettext, _urls):
    import argparse
    import pathlib

__all__ = ["argparse", "pathlib"]
