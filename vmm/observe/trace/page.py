"""The timeline's page: one HTML file with everything in it."""

from html import escape

from vmm.observe.trace.timeline import BINS, Timeline

WIDTH, BAR_HEIGHT, PLOT_HEIGHT = 960, 34, 90
_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#76b7b2", "#e15759", "#edc948", "#9c755f")
_KINDS = {"hypercall": "hypercalls", "event": "events", "xenstore": "xenstore messages", "exit": "other exits"}
_TOP = 25

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1000px; padding: 0 1em; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: 2px 10px 2px 0; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, td.line { font: 12px/1.4 ui-monospace, monospace; white-space: pre-wrap; word-break: break-all; }
svg { display: block; width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: #555; }
.key { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.4em; vertical-align: -0.1em; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } svg text { fill: #aaa; } }
"""


def page(title: str, timeline: Timeline) -> str:
    """The whole page."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{timeline.seconds:.3f} s from exec to the end, {timeline.names.total()} records, "
            f"{len(timeline.lines)} console lines.</p>",
            "<h2>Phases</h2>",
            _phases(timeline),
            *(_plot(timeline, kind, name) for kind, name in _KINDS.items()),
            "<h2>Slowest gaps on the console</h2>",
            _gaps(timeline),
            "<h2>Most frequent</h2>",
            _frequent(timeline),
            "</body></html>",
            "",
        ]
    )


def _phases(timeline: Timeline) -> str:
    scale = WIDTH / (timeline.seconds or 1)
    bars, rows = [], []
    for index, phase in enumerate(timeline.phases()):
        colour, seconds = _COLOURS[index % len(_COLOURS)], phase.end_s - phase.start_s
        tip = f"<title>{escape(phase.name)}: {seconds:.3f} s</title>"
        bars.append(
            f'<rect class="phase" x="{phase.start_s * scale:.2f}" y="0" width="{max(seconds * scale, 0.5):.2f}" '
            f'height="{BAR_HEIGHT}" fill="{colour}">{tip}</rect>'
        )
        rows.append(
            f'<tr><td><span class="key" style="background:{colour}"></span>{escape(phase.name)}</td>'
            f'<td class="n">{phase.start_s:.3f}</td><td class="n">{seconds:.3f}</td>'
            f'<td class="n">{100 * seconds / (timeline.seconds or 1):.1f} %</td></tr>'
        )
    head = '<tr><th>phase</th><th class="n">from, s</th><th class="n">seconds</th><th class="n">share</th></tr>'
    return f"{_svg(BAR_HEIGHT + 16, ''.join(bars) + _axis(timeline, BAR_HEIGHT))}<table>{head}{''.join(rows)}</table>"


def _plot(timeline: Timeline, kind: str, name: str) -> str:
    bins = timeline.counts(kind)
    highest = max(bins)
    if not highest:
        return ""
    step = WIDTH / BINS
    bars = "".join(
        f'<rect x="{index * step:.2f}" y="{PLOT_HEIGHT * (1 - count / highest):.2f}" width="{step:.2f}" '
        f'height="{PLOT_HEIGHT * count / highest:.2f}" fill="{_COLOURS[0]}"><title>{count} {name} in '
        f"{timeline.seconds / BINS * 1e3:.1f} ms from {index * timeline.seconds / BINS:.3f} s</title></rect>"
        for index, count in enumerate(bins)
        if count
    )
    peak = highest * BINS / (timeline.seconds or 1)
    return (
        f"<h2>{name[0].upper() + name[1:]} over time: {sum(bins)}, at most {peak:.0f} a second</h2>"
        f"{_svg(PLOT_HEIGHT + 16, bars + _axis(timeline, PLOT_HEIGHT))}"
    )


def _axis(timeline: Timeline, y: int) -> str:
    marks = []
    for index in range(9):
        x = WIDTH * index / 8
        anchor = "start" if index == 0 else "end" if index == 8 else "middle"
        marks.append(f'<text x="{x:.0f}" y="{y + 13}" text-anchor="{anchor}">{timeline.seconds * index / 8:.2f} s</text>')
    return "".join(marks)


def _svg(height: int, content: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{content}</svg>'


def _gaps(timeline: Timeline) -> str:
    rows = [
        f'<tr><td class="n">{gap.seconds:.3f}</td><td class="n">{gap.start_s:.3f}</td>'
        f'<td class="line">{escape(gap.before)}\n<b>{escape(gap.after)}</b></td></tr>'
        for gap in timeline.gaps()
    ]
    if not rows:
        return "<p>The guest printed no two lines.</p>"
    head = '<tr><th class="n">seconds</th><th class="n">from, s</th><th>the line before, and <b>after</b></th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _frequent(timeline: Timeline) -> str:
    rows = [
        f'<tr><td class="n">{count}</td><td class="n">{count / (timeline.seconds or 1):.1f}</td>'
        f"<td><code>{escape(name)}</code></td></tr>"
        for name, count in timeline.names.most_common(_TOP)
    ]
    head = '<tr><th class="n">count</th><th class="n">a second</th><th>what</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"
