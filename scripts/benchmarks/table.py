"""Rows of a benchmark, and how they are printed."""

import statistics
from typing import NamedTuple


class Row(NamedTuple):
    """One measured quantity: samples, their unit, and what it may be at most (None where nothing is promised)."""

    name: str
    samples: list[float]
    unit: str
    limit: float | None = None


def print_table(title: str, rows: list[Row]) -> None:
    """Median, minimum and maximum of every row, and its limit."""
    print(f"\n{title}")
    print(f"  {'':<52} {'median':>9} {'min':>9} {'max':>9}  limit")
    for row in rows:
        median = statistics.median(row.samples)
        limit = "" if row.limit is None else f"{row.limit:g} {'met' if median <= row.limit else 'MISSED'}"
        print(f"  {row.name:<52} {median:>9.2f} {min(row.samples):>9.2f} {max(row.samples):>9.2f}  {limit:<12} {row.unit}")
