"""Block devices: the vbd back end, and what it keeps its data in."""
