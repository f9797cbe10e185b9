"""Write fitted constants as a calibration file: the same results, the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from simulator.specs import Calibration
from simulator.specs.base import Seconds, Spec
from simulator.specs.calibration import OPERATOR_CLASSES
from simulator.specs.source import read_document
from simulator.validation.fit import Fitted

SECTIONS: Mapping[str, type[Spec]] = {
    name: field.annotation
    for name, field in Calibration.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Spec)
}
"""Sections of constants, in the order of the schema."""
HEADER = "# Written by `memroof calibrate`; constants that are not here come from the architecture's and the kind's file.\n"


def write_calibration(path: Path, device: str, results: Sequence[Fitted]) -> None:
    """Write (or update) a device's calibration file with fitted constants, their spread and their provenance.

    Classes that are not among the results keep what the file says of them; constants that none of their rows determines leave it.
    """
    content: dict[str, Any] = read_document(path).data if path.is_file() else {}
    for fitted in results:
        for section, name in fitted.undetermined:
            content.get(section, {}).pop(name, None)
        for (section, name), value in fitted.values.items():
            content.setdefault(section, {})[name] = _constant(section, name, value)
        content.setdefault("error", {})[fitted.operator_class] = f"{fitted.spread:g}"
        record = {k: v for k, v in fitted.record.model_dump().items() if v != ""}
        content.setdefault("fits", {})[fitted.operator_class] = record
    data = sorted({str(record["data"]) for record in content.get("fits", {}).values()})
    write_content(path, device, "fitted on " + "; ".join(data), content)


def write_content(path: Path, name: str, source: str, content: Mapping[str, Any]) -> None:
    """Write a calibration file from its tree; keys stand in the order of the schema, so that equal trees give equal bytes."""
    lines = [HEADER, "kind: calibration\n", f"name: {name}\n", f"source: {_text(source)}\n"]
    if content.get("note"):
        lines.append(f"note: {_text(str(content['note']))}\n")
    orders: dict[str, Sequence[str]] = {
        section: list(schema.model_fields) for section, schema in SECTIONS.items()
    }
    orders |= {"error": OPERATOR_CLASSES, "fits": OPERATOR_CLASSES}
    for section, order in orders.items():
        if content.get(section):
            lines.append(f"{section}:\n")
            items = sorted(content[section].items(), key=lambda item: order.index(item[0]))
            lines += [f"  {key}: {_value(value)}\n" for key, value in items]
    path.parent.mkdir(parents=True, exist_ok=True)
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
