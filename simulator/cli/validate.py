"""``memroof validate``: predictions against measured data sets, judged by committed bounds."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.options import json_option, open_catalog, path_option
from simulator.cli.output import note, print_json, print_lines


@click.command("validate")
@click.option(
    "--measurements",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder laid out as source/file.csv; the rows shipped with memroof if absent.",
)
@click.option("--only", metavar="NAME", help="Data sets whose name contains this text.")
@click.option(
    "--plot",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write a predicted-against-measured plot of each data set here.",
)
@path_option
@json_option
def command(
    measurements: Path | None, only: str | None, plot: Path | None, paths: tuple[Path, ...], as_json: bool
) -> int:
    """Compare predictions with measurements: errors, worst rows, coverage of the 80 % interval.

    Exit code 1 says that a data set is worse than its committed bound.
    """
    from simulator.report.validation import score_lines, score_plot
    from simulator.validation import validate

    scores = []
    for score in validate(measurements, catalog=open_catalog(paths), only=only):
        scores.append(score)
        if not as_json:
            print_lines(score_lines(score))
        if plot is not None and score.rows:
            plot.mkdir(parents=True, exist_ok=True)
            file = plot / (score.dataset.replace("/", "_").replace("#", "_") + ".png")
            score_plot(score).savefig(file, dpi=110)
            note(f"wrote {file}")
    if as_json:
        print_json([score.to_dict() for score in scores])
    return 0 if all(score.ok for score in scores) else 1
