"""``memroof whatif``: vary keys of a scenario and compare the answers."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simulator.cli.options import assigned, json_option, path_option, scenario_argument, set_option
from simulator.cli.output import drawing, note, print_json, print_lines, write_figure, write_text

if TYPE_CHECKING:
    from simulator.analysis import Sweep

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    "whatif",
    epilog="For example: memroof whatif training/gpt3-175b-64xa100 --vary strategy.recompute=none,selective,full",
)
@scenario_argument
@click.option(
    "--vary", "varied", multiple=True, required=True, metavar="KEY=A,B,C",
    help="Values of a key, keys as for --set; several are combined (repeatable).",
)  # fmt: skip
@click.option("--csv", "csv_file", type=_FILE, metavar="FILE", help="Write the table as CSV, in SI units.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw the headline as PNG or SVG.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@set_option
@path_option
@json_option
def command(
    scenario: str,
    varied: tuple[str, ...],
    csv_file: Path | None,
    plot: Path | None,
    jobs: int,
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Answer a scenario for every combination of the varied keys."""
    from simulator.analysis import whatif
    from simulator.report.text import sweep_lines

    drawing(plot)
    vary = {key: split_values(key, text) for key, text in assigned(varied, "--vary").items()}
    sweep = whatif(scenario, vary, paths=paths, overrides=assigned(assignments), jobs=jobs)
    if as_json:
        print_json(
            {"keys": sweep.keys, "headline": sweep.headline, "dimension": sweep.dimension, "rows": sweep.rows}
        )
    else:
        print_lines(sweep_lines(sweep))
    if csv_file is not None:
        write_text(csv_file, csv_text(sweep))
        note(f"wrote {csv_file}")
    if plot is not None:
        write_figure(plot, sweep.plot())


def split_values(key: str, text: str) -> list[str]:
    """Split ``a,b,{c: d, e: f}`` at the commas outside brackets; an empty value is a usage error."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    values = [value.strip() for value in values]
    if not all(values):
        raise click.UsageError(f"--vary {key}: an empty value; write it like --vary {key}=1,2,4")
    return values


def csv_text(sweep: Sweep) -> str:
    """Return the rows as CSV with a header, figures in SI units."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(sweep.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sweep.rows)
    return buffer.getvalue()
