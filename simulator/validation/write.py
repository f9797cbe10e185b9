"""Write fitted constants as a calibration file: the same results, the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from simulator.specs import Calibration
from simulator.specs.base import Seconds
from simulator.specs.source import read_document
from simulator.validation.fit import Fitted

ORDER = (
    "matmul", "attention", "decode_attention", "elementwise", "collective", "transfer", "host", "error", "fits",
)  # fmt: skip
HEADER = "# Written by `memroof calibrate`; constants that are not here come from the architecture's and the kind's file.\n"


def write_calibration(path: Path, device: str, results: Sequence[Fitted]) -> None:
    """Write (or update) a device's calibration file with fitted constants, their spread and their provenance.

    Classes that are not among the results keep what the file says of them.
    """
    content: dict[str, Any] = read_document(path).data if path.is_file() else {}
    for fitted in results:
        for (section, name), value in fitted.values.items():
            content.setdefault(section, {})[name] = _constant(section, name, value)
        content.setdefault("error", {})[fitted.operator_class] = f"{fitted.spread:g}"
        record = {k: v for k, v in fitted.record.model_dump().items() if v != ""}
        content.setdefault("fits", {})[fitted.operator_class] = record
    data = sorted({str(record["data"]) for record in content.get("fits", {}).values()})
    source = "fitted on " + "; ".join(data)
    lines = [HEADER, "kind: calibration\n", f"name: {device}\n", f"source: {_text(source)}\n"]
    if content.get("note"):
        lines.append(f"note: {_text(str(content['note']))}\n")
    for section in ORDER:
        if content.get(section):
            lines.append(f"{section}:\n")
            lines += [f"  {key}: {_value(value)}\n" for key, value in content[section].items()]
    path.write_text("".join(lines), encoding="utf-8")


def _constant(section: str, name: str, value: float) -> str:
    schema: Any = Calibration.model_fields[section].annotation
    is_time = Seconds in get_args(schema.model_fields[name].annotation)
    return f"{value * 1e6:.4g} us" if is_time else f"{value:g}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    return str(value) if not isinstance(value, str) or _plain(value) else _text(value)


def _plain(value: str) -> bool:
    return (
        value.replace(".", "").replace("-", "").replace("+", "").replace("_", "").replace(" ", "").isalnum()
    )


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
