"""What goes over a control socket.

A request is one line of JSON, `{"do": NAME, "guest": NAME OR DOMID, ...}`, and so is its answer: `{"ok": VALUE}` or
`{"error": SENTENCE}`.  After `console` has been answered the connection carries the console's bytes, both ways; after
`trace` and `stats` it carries text, until the guest ends or the client goes.
"""

from typing import Any

MAX_LINE_BYTES = 4096
STREAMS = ("console", "trace", "stats")
"""Requests after which a connection carries something else."""

# json is imported where it is used: most guests are asked for nothing.


def parsed(line: bytes) -> dict[str, Any] | None:
    """A request; None where it is none."""
    import json

    if len(line) >= MAX_LINE_BYTES or not line.endswith(b"\n"):
        return None
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def packed(message: dict[str, Any]) -> bytes:
    """A message as it goes over the socket."""
    import json

    return json.dumps(message).encode() + b"\n"
