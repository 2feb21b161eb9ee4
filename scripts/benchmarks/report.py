"""Results for machines and as a page: `scripts/bench --json F --html F`."""

import json
import os
import statistics
import time
from html import escape
from pathlib import Path
from typing import Any

from scripts.benchmarks.table import Row

WIDTH, ROW_HEIGHT, LABEL_WIDTH = 960, 20, 420
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1000px; padding: 0 1em; color: #222; }
svg { display: block; width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: #333; }
.met { fill: #59a14f; } .missed { fill: #e15759; } .plain { fill: #4e79a7; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } svg text { fill: #bbb; } }
"""


def conditions() -> dict[str, str]:
    """What the figures were made on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "kernel": os.uname().release,
        "cpu": model.strip(),
        "cpus": str(os.cpu_count()),
        "load at the start": f"{os.getloadavg()[0]:.2f}",
    }


def as_json(found: dict[str, list[Row]], made_on: dict[str, str]) -> str:
    """Everything, samples too."""
    subjects: dict[str, Any] = {
        name: [row._asdict() | {"median": statistics.median(row.samples)} for row in rows] for name, rows in found.items()
    }
    return json.dumps({"conditions": made_on, "subjects": subjects}, indent=1) + "\n"


def from_json(text: str) -> dict[str, list[Row]]:
    """What `as_json` has written."""
    subjects = json.loads(text)["subjects"]
    return {name: [Row(**{key: row[key] for key in Row._fields}) for row in rows] for name, rows in subjects.items()}


def as_html(found: dict[str, list[Row]], made_on: dict[str, str]) -> str:
    """A page with a bar for each row's median and a line from its least to its greatest sample."""
    parts = [f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>pyvmm benchmarks</title><style>{_STYLE}"]
    parts.append("</style></head><body><h1>pyvmm benchmarks</h1><p>")
    parts.append("; ".join(f"{escape(key)}: {escape(value)}" for key, value in made_on.items()) + "</p>")
    for name, rows in found.items():
        parts.append(f"<h2>{escape(name)}</h2>")
        for unit in dict.fromkeys(row.unit for row in rows):
            parts.append(_plot([row for row in rows if row.unit == unit], unit))
    return "\n".join([*parts, "</body></html>", ""])


def _plot(rows: list[Row], unit: str) -> str:
    most = max(max(row.samples) for row in rows) or 1
    scale = (WIDTH - LABEL_WIDTH - 130) / most
    bars = []
    for index, row in enumerate(rows):
        median, y = statistics.median(row.samples), index * ROW_HEIGHT
        verdict = row.verdict(median)
        kind = "missed" if "MISSED" in verdict else "met" if verdict else "plain"
        low, high = LABEL_WIDTH + min(row.samples) * scale, LABEL_WIDTH + max(row.samples) * scale
        bars.append(
            f'<text x="{LABEL_WIDTH - 8}" y="{y + 14}" text-anchor="end">{escape(row.name)}</text>'
            f'<rect class="{kind}" x="{LABEL_WIDTH}" y="{y + 3}" width="{median * scale:.1f}" height="{ROW_HEIGHT - 6}"/>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="#000" stroke-opacity=".6"/>'
            f'<text x="{high + 6:.1f}" y="{y + 14}">{median:.2f} {escape(unit)} {escape(verdict)}</text>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {len(rows) * ROW_HEIGHT + 6}" role="img">{"".join(bars)}</svg>'
