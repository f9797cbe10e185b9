"""``memroof latency``: whole distributions of a serving scenario's latencies, and its requests one by one."""

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
from simulator.cli.output import drawing, note, print_json, print_lines, write_figure, write_text

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    "latency", epilog="For example: memroof latency serving/llama3.1-70b-8xh100 --csv requests.csv"
)
@scenario_argument
@click.option("--csv", "csv_file", type=_FILE, metavar="FILE", help="Write one row a request, in seconds.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw the distributions as PNG or SVG.")
@click.option(
    "--series", "series_file", type=_FILE, metavar="FILE",
    help="Draw queue, batch and KV cache over time as PNG or SVG.",
)  # fmt: skip
@set_option
@path_option
@json_option
def command(
    scenario: str,
    csv_file: Path | None,
    plot: Path | None,
    series_file: Path | None,
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Show percentiles of every latency of a serving scenario, and what binds prefill and decode.

    Iterations that hold prompt tokens count as prefill, with the decodes beside them; the others as decode.
    """
    from simulator.analysis import run
    from simulator.analysis.distribution import distributions, plot_latencies, plot_series, requests_csv
    from simulator.report.serving import latency_document, latency_lines

    drawing(plot)
    drawing(series_file, "--series")
    result = run(scenario, catalog=open_catalog(paths, assigned(assignments)))
    found = distributions(result)
    if as_json:
        print_json(latency_document(result, found))
    else:
        print_lines(latency_lines(result, found))
    if csv_file is not None:
        write_text(csv_file, requests_csv(result))
        note(f"wrote {csv_file}")
    if plot is not None:
        write_figure(plot, plot_latencies(result))
    if series_file is not None:
        write_figure(series_file, plot_series(result))
    return EXIT_OK if result.ok else EXIT_UNFIT
