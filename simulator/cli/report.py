"""``memroof report``: a scenario's sizing report."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.lazy import EXIT_OK, EXIT_UNFIT
from simulator.cli.options import (
    assigned,
    json_option,
    open_catalog,
    path_option,
    scenario_argument,
    set_option,
)
from simulator.cli.output import note, print_json, write_text

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("report")
@scenario_argument
@click.option("-o", "--output", type=_FILE, metavar="FILE.html", help="One self-contained page with figures.")
@click.option("--markdown", type=_FILE, metavar="FILE.md", help="The same figures and tables as Markdown.")
@click.option(
    "--csv", "csv_file", type=_FILE, metavar="FILE.csv", help="Metrics, ledger and shares, in SI units."
)
@set_option
@path_option
@json_option
def command(
    scenario: str,
    output: Path | None,
    markdown: Path | None,
    csv_file: Path | None,
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Write a sizing report: decision figures, ledger, bottleneck, timeline, sensitivity, assumptions, sources."""
    from simulator.analysis import run
    from simulator.report import Form, render_report

    if not (output or markdown or csv_file):
        raise click.UsageError("nothing to write; give -o FILE.html, --markdown FILE.md or --csv FILE.csv")
    result = run(scenario, catalog=open_catalog(paths, assigned(assignments)))
    forms: tuple[tuple[Path | None, Form], ...] = (
        (output, "html"),
        (markdown, "markdown"),
        (csv_file, "csv"),
    )
    written = [(file, form) for file, form in forms if file is not None]
    for file, form in written:
        write_text(file, render_report(result, form))
        note(f"wrote {file}")
    if as_json:
        print_json({"files": [str(file) for file, _ in written], "fits": result.fits, "ok": result.ok})
    return EXIT_OK if result.ok else EXIT_UNFIT
