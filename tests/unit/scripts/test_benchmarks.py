"""What `scripts/bench` makes of its samples."""

import json

from scripts.benchmarks.report import as_html, as_json, conditions, from_json
from scripts.benchmarks.table import Row

FOUND = {
    "one": [Row("quick <b>", [1.0, 3.0, 2.0], "us", 2.5), Row("slow", [9.0], "us", 2.5)],
    "two": [Row("rate", [0.5], "times", least=0.9), Row("plain", [0.0], "MiB")],
}


def test_json_has_every_sample_and_what_they_were_made_on() -> None:
    loaded = json.loads(as_json(FOUND, conditions()))
    assert loaded["subjects"]["one"][0]["samples"] == [1.0, 3.0, 2.0]
    assert loaded["subjects"]["one"][0]["median"] == 2.0
    assert from_json(as_json(FOUND, conditions())) == FOUND
    assert {"date", "kernel", "cpu", "cpus"} <= set(loaded["conditions"])


def test_the_page_has_a_bar_for_each_row_in_the_colour_of_its_verdict() -> None:
    page = as_html(FOUND, conditions())
    assert page.count("<rect") == 4
    assert [page.count(f'class="{kind}"') for kind in ("met", "missed", "plain")] == [1, 2, 1]
    assert "quick &lt;b&gt;" in page
