"""llama-bench output: Markdown table, CSV, JSON or JSON lines; tokens per second of reading and of generating."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.traces.trace import (
    PhaseRate,
    Trace,
    fault,
    number,
    read_documents,
    read_rows,
    read_text,
    whole,
)

_TEST = re.compile(r"(?:pp\s*(\d+))?\s*\+?\s*(?:tg\s*(\d+))?(?:\s*@\s*d\s*(\d+))?")
_TABLE = re.compile(r"^\|\s*model\s*\|.*\|\s*t/s\s*\|\s*$", re.MULTILINE)


def matches(head: str) -> bool:
    """Whether the table's header, or the fields of the other outputs, are there."""
    return bool(_TABLE.search(head)) or all(word in head for word in ("n_prompt", "n_gen", "avg_ts"))


def read(file: Path) -> Trace:
    """Read the rates of every test."""
    text = read_text(file)
    if _TABLE.search(text):
        rates = _table(file, text)
    elif text.lstrip()[:1] in ("[", "{"):
        rates = [
            _rate(row, file, line)
            for line, document in read_documents(file)
            for row in (document if isinstance(document, list) else [document])
        ]
    else:
        rates = [_rate(row, file, line) for line, row in read_rows(file, ("n_prompt", "n_gen", "avg_ts"))]
    if not rates:
        raise fault(file, "holds no test")
    return Trace(str(file), "llama-bench", rates=tuple(rates))


def _table(file: Path, text: str) -> list[PhaseRate]:
    columns: list[str] = []
    rates = []
    for line, row in enumerate(text.splitlines(), 1):
        if not row.startswith("|"):
            continue
        cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
        if "t/s" in cells:
            columns = cells
        elif columns and not set("".join(cells)) <= set("-: "):
            if len(cells) != len(columns):
                raise fault(file, f"{len(cells)} cells where the header has {len(columns)} columns", line)
            named = dict(zip(columns, cells, strict=True))
            match = _TEST.fullmatch(named.get("test", ""))
            if not match or not (match[1] or match[2]):
                raise fault(
                    file, f"{named.get('test', '')!r} is no test such as pp512, tg128 or pp512+tg128", line
                )
            prompt, output, depth = (int(part or 0) for part in match.groups())
            rate = number(named["t/s"].partition("±")[0].strip(), file, "t/s", line)
            rates.append(_phase(prompt, output, depth, rate, named.get("model", ""), file, line))
    return rates


def _rate(row: Mapping[str, Any], file: Path, line: int) -> PhaseRate:
    if not isinstance(row, dict):
        raise fault(file, "a test is no JSON object", line)
    missing = [key for key in ("n_prompt", "n_gen", "avg_ts") if key not in row]
    if missing:
        raise fault(file, f"a test without {', '.join(missing)}", line)
    prompt, output, depth = (
        whole(row.get(key, 0), file, key, line) for key in ("n_prompt", "n_gen", "n_depth")
    )
    label = str(row.get("model_type") or row.get("model_filename") or "")
    return _phase(prompt, output, depth, number(row["avg_ts"], file, "avg_ts", line), label, file, line)


def _phase(prompt: int, output: int, depth: int, rate: float, label: str, file: Path, line: int) -> PhaseRate:
    if rate <= 0.0 or prompt + output == 0:
        raise fault(file, "a test that processed nothing", line)
    return PhaseRate(prompt, output, depth, rate, label)
