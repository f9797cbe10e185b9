"""Files that commands write: traces and reports."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from user_catalog import UserCatalog


def test_trace_writes_a_file_that_perfetto_opens(user: UserCatalog, tmp_path: Path) -> None:
    target = tmp_path / "trace.json"
    result = user.memroof("trace", "tiny-training", "--perfetto", str(target), "--json")
    assert result.exit_code == 0, result.stderr
    trace = json.loads(target.read_text())
    assert json.loads(result.stdout)["events"] == len(trace["traceEvents"])
    assert "ui.perfetto.dev" in result.stderr
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X", "C"}


def test_report_writes_html_markdown_and_csv(user: UserCatalog, tmp_path: Path) -> None:
    page, text, table = (tmp_path / name for name in ("r.html", "r.md", "r.csv"))
    result = user.memroof(
        "report", "tiny-training", "-o", str(page), "--markdown", str(text), "--csv", str(table), "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["files"] == [str(page), str(text), str(table)]
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert text.read_text().startswith("# tiny-training\n")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["section"] for row in rows} >= {"metric", "memory", "bottleneck"}


def test_report_of_what_does_not_fit_exits_with_3(user: UserCatalog, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    result = user.memroof(
        "report", "tiny-training", "-o", str(page), "--set", "device.toy-gpu.memory.hbm.capacity=1.4 GiB"
    )
    assert result.exit_code == 3
    assert "does not fit" in page.read_text()
    assert "What would make it fit" in page.read_text()
