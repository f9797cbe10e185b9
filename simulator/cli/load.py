"""``memroof load``: latency, goodput, dollars and joules of a serving scenario against its load."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.options import assigned, json_option, path_option, scenario_argument, set_option
from simulator.cli.output import drawing, print_json, print_lines, write_figure, write_rows

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    "load", epilog="For example: memroof load serving/llama3.1-70b-8xh100 --at 2,5,10,20 --plot load.png"
)
@scenario_argument
@click.option(
    "--at", "loads", metavar="A,B,C",
    help="Requests a second (clients, speeds of a trace); else shares of the largest that holds.",
)  # fmt: skip
@click.option("--requests", type=click.IntRange(min=1), metavar="N", help="Simulated at each load.")
@click.option("--csv", "csv_file", type=_FILE, metavar="FILE", help="Write the table as CSV, in SI units.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw the curves as PNG or SVG.")
@set_option
@path_option
@json_option
def command(
    scenario: str,
    loads: str | None,
    requests: int | None,
    csv_file: Path | None,
    plot: Path | None,
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Show latency, goodput, dollars and joules a million tokens of a serving scenario against its load."""
    from simulator.analysis.curve import load_curve
    from simulator.report.serving import curve_document, curve_lines

    drawing(plot)
    values = None if loads is None else numbers("--at", loads)
    curve = load_curve(scenario, values, requests=requests, paths=paths, overrides=assigned(assignments))
    if as_json:
        print_json(curve_document(curve))
    else:
        print_lines(curve_lines(curve))
    if csv_file is not None:
        write_rows(csv_file, [point.row() for point in curve.points])
    if plot is not None:
        write_figure(plot, curve.plot())


def numbers(option: str, text: str) -> list[float]:
    """Read ``1,2.5,4`` or ``1 req/s,2 req/s``; anything else, or 0, is a usage error."""
    values = []
    for part in text.split(","):
        try:
            value = float(part.strip().removesuffix("req/s").strip())
        except ValueError:
            raise click.UsageError(
                f"{option} {text}: {part.strip()!r} is no number; write it like {option} 1,2,4"
            ) from None
        if not 0.0 < value < float("inf"):
            raise click.UsageError(f"{option} {text}: {part.strip()!r} is not above 0")
        values.append(value)
    return values
