"""``memroof list``: the catalog, one line an entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simulator.cli.lazy import EXIT_INPUT
from simulator.cli.options import json_option, open_catalog, path_option
from simulator.cli.output import note, print_json, print_lines

_KINDS = {
    **{f"{kind}s": kind for kind in ("device", "link", "node", "cluster", "model")},
    "layers": "layers",
    **{f"{kind}s": kind for kind in ("graph", "scenario", "calibration")},
}


@click.command("list")
@click.argument("kind", required=False, type=click.Choice([*_KINDS]), metavar="[KIND]")
@path_option
@json_option
def command(kind: str | None, paths: tuple[Path, ...], as_json: bool) -> int:
    """List what memroof knows, one line an entry.

    KIND is one of devices, links, nodes, clusters, models, layers, graphs, scenarios, calibrations; without it the
    counts of all and the scenarios are shown.
    """
    from simulator.report.layout import columns
    from simulator.specs import MemroofError

    catalog = open_catalog(paths)
    if kind is None and not as_json:
        counts = [
            (plural, str(len(catalog.names(single))), f"memroof list {plural}")
            for plural, single in _KINDS.items()
        ]
        print_lines([*columns(counts, right=[1]), ""])
    listed = list(_KINDS) if kind is None and as_json else [kind or "scenarios"]
    table: dict[str, list[dict[str, Any]]] = {plural: [] for plural in listed}
    rows: list[tuple[str, ...]] = []
    faulty = False
    for plural in listed:
        for name in catalog.names(_KINDS[plural]):
            try:
                if as_json:
                    table[plural].append(_record(catalog, _KINDS[plural], name))
                else:
                    rows.append(_row(catalog, _KINDS[plural], name))
            except MemroofError as error:
                faulty = True
                for line in str(error).splitlines():
                    note(f"error: {line}")
    if as_json:
        print_json(table)
    else:
        print_lines(columns(rows))
    return EXIT_INPUT if faulty else 0


def _row(catalog: Any, kind: str, name: str) -> tuple[str, ...]:
    from simulator.report.facts import one_line

    return one_line(catalog, kind, name)


def _record(catalog: Any, kind: str, name: str) -> dict[str, Any]:
    from simulator.report.facts import derived, one_line

    facts = {fact.key: fact.value for fact in derived(catalog, kind, name)}
    return {"name": name, "facts": list(one_line(catalog, kind, name)[1:]), **facts}
