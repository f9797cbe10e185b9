"""``memroof pareto``: tokens a second for a user against tokens a second of an accelerator."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.options import assigned, json_option, path_option, scenario_argument, set_option
from simulator.cli.output import drawing, print_json, print_lines, write_figure, write_rows

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    "pareto",
    epilog="For example: memroof pareto serving/llama3.1-70b-8xh100 --vary strategy.tensor_parallel=4,8"
    " --vary strategy.precision=bf16,fp8",
)
@scenario_argument
@click.option(
    "--vary", "varied", multiple=True, metavar="KEY=A,B,C",
    help="Values of a key, keys as for --set; tensor-parallel degrees if absent (repeatable).",
)  # fmt: skip
@click.option(
    "--concurrency", "clients", metavar="A,B,C",
    help="Clients of a replica; powers of two up to max_batch if absent.",
)  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Print every point, not the front alone.")
@click.option("--csv", "csv_file", type=_FILE, metavar="FILE", help="Write every point as CSV, in SI units.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw points and front as PNG or SVG.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@set_option
@path_option
@json_option
def command(
    scenario: str,
    varied: tuple[str, ...],
    clients: str | None,
    every: bool,
    csv_file: Path | None,
    plot: Path | None,
    jobs: int,
    assignments: tuple[str, ...],
    paths: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Find what a user's tokens per second and an accelerator's can be together, over strategies and clients."""
    from simulator.analysis.pareto import pareto
    from simulator.cli.load import numbers
    from simulator.cli.whatif import split_values
    from simulator.report.serving import pareto_document, pareto_lines

    drawing(plot)
    vary = {key: split_values(key, text) for key, text in assigned(varied, "--vary").items()}
    counts = None
    if clients is not None:
        values = numbers("--concurrency", clients)
        if not all(value.is_integer() for value in values):
            raise click.UsageError(f"--concurrency {clients}: expected whole numbers")
        counts = [int(value) for value in values]
    found = pareto(
        scenario, vary or None, concurrency=counts, jobs=jobs, paths=paths, overrides=assigned(assignments)
    )
    if as_json:
        print_json(pareto_document(found))
    else:
        print_lines(pareto_lines(found, every=every))
    if csv_file is not None:
        write_rows(csv_file, [point.row() for point in found.points])
    if plot is not None:
        write_figure(plot, found.plot())
