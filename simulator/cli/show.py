"""``memroof show``: one entry of the catalog, as written and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.options import complete, json_option, open_catalog, path_option
from simulator.cli.output import print_json, print_lines

if TYPE_CHECKING:
    from simulator.specs import Catalog

_KINDS = ("device", "link", "node", "cluster", "model", "layers", "graph", "scenario", "calibration")


@click.command("show")
@click.argument("names", nargs=-1, required=True, metavar="[KIND] NAME", shell_complete=complete(*_KINDS))
@path_option
@json_option
def command(names: tuple[str, ...], paths: tuple[Path, ...], as_json: bool) -> None:
    """Show one entry of the catalog: its figures with their sources, and what follows from them.

    KIND (device, link, node, cluster, model, layers, graph, scenario, calibration) is needed only where a name stands
    for several.
    """
    from simulator.report.facts import derived, entry
    from simulator.report.layout import columns
    from simulator.specs.source import read_document

    catalog = open_catalog(paths)
    kind, name = _find(catalog, names)
    item = entry(catalog, kind, name)
    facts = derived(catalog, kind, name)
    file = catalog.file(kind, name)
    if as_json:
        print_json(
            {
                "kind": kind,
                "name": name,
                "file": str(file),
                "values": item.model_dump(mode="json", exclude_none=True),
                "derived": {fact.key: fact.value for fact in facts},
            }
        )
        return
    print_lines([f"{kind} {name}  ({file})", ""])
    print_lines(columns(_flat(read_document(file).data), indent="  "))
    if facts:
        print_lines(["", "derived"])
        print_lines(columns([(fact.label, str(fact)) for fact in facts], indent="  "))


def _find(catalog: Catalog, names: tuple[str, ...]) -> tuple[str, str]:
    from simulator.specs.errors import UnknownNameError, unknown

    if len(names) == 2:
        kind, name = names[0] if names[0] in _KINDS else names[0].removesuffix("s"), names[1]
        if kind not in _KINDS:
            raise click.UsageError(unknown("kind", names[0], _KINDS))
        catalog.file(kind, name)
        return kind, name
    if len(names) != 1:
        raise click.UsageError(f"found {len(names)} names, expected [KIND] NAME")
    found = []
    for kind in _KINDS:
        try:
            catalog.file(kind, names[0])
        except UnknownNameError:
            continue
        found.append(kind)
    if len(found) > 1:
        raise click.UsageError(
            f"{names[0]!r} is a {' and a '.join(found)}; say which: memroof show {found[0]} {names[0]}"
        )
    if not found:
        raise UnknownNameError("name", names[0], [name for kind in _KINDS for name in catalog.names(kind)])
    return found[0], names[0]


def _flat(data: Any, key: str = "") -> list[tuple[str, ...]]:
    """Return a document's leaves as rows: key path, and value as written with its source."""
    if isinstance(data, dict) and key and "value" in data:
        origin = ", ".join(str(data[part]) for part in ("source", "date") if data.get(part))
        return [(key, f"{data['value']}  [{origin}]" if origin else str(data["value"]))]
    if isinstance(data, dict):
        return [row for name, value in data.items() for row in _flat(value, f"{key}.{name}" if key else name)]
    if isinstance(data, list) and any(isinstance(item, (dict, list)) for item in data):
        return [row for index, item in enumerate(data) for row in _flat(item, f"{key}[{index}]")]
    if isinstance(data, list):
        return [(key, ", ".join(map(str, data)))]
    return [(key, "" if data is None else str(data))]
