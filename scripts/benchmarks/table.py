"""Rows of a benchmark, and how they are printed."""

import statistics
from typing import NamedTuple


class Row(NamedTuple):
    """One measured quantity: samples, their unit, and what it may be at most, or at least (None: nothing is promised)."""

    name: str
    samples: list[float]
    unit: str
    limit: float | None = None
    least: float | None = None

    def verdict(self, median: float) -> str:
        """The limit, and whether it is kept."""
        if self.limit is not None:
            return f"{self.limit:g} {'met' if median <= self.limit else 'MISSED'}"
        if self.least is not None:
            return f">= {self.least:g} {'met' if median >= self.least else 'MISSED'}"
        return ""


def print_table(title: str, rows: list[Row]) -> None:
    """Median, minimum and maximum of every row, and its limit."""
    print(f"\n{title}")
    print(f"  {'':<52} {'median':>9} {'min':>9} {'max':>9}  limit")
    for row in rows:
        median = statistics.median(row.samples)
        limit = row.verdict(median)
        print(f"  {row.name:<52} {median:>9.2f} {min(row.samples):>9.2f} {max(row.samples):>9.2f}  {limit:<12} {row.unit}")
