"""``memroof tiers``: what each memory held and each link carried, when, and beside what."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.options import assigned, json_option, path_option, scenario_argument, set_option
from simulator.cli.output import note, print_json, print_lines, write_text


@click.command("tiers", epilog="For example: memroof tiers offload/opt-30b-t4")
@scenario_argument
@click.option(
    "--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write bytes resident over time, by memory and category, in SI units.",
)  # fmt: skip
@set_option
@path_option
@json_option
def command(
    scenario: str, csv_file: Path | None, assignments: tuple[str, ...], paths: tuple[Path, ...], as_json: bool
) -> None:
    """Show every memory over time, the bytes over each way, how busy it was, and what overlapped with what."""
    from simulator.analysis import run
    from simulator.analysis.tiers import tiers
    from simulator.report.memory import tiers_lines
    from simulator.specs import Catalog

    catalog = Catalog(paths, assigned(assignments))
    result = run(scenario, catalog=catalog, detail=catalog.scenario(scenario).kind == "offload")
    found = tiers(result)
    if as_json:
        print_json({"scenario": result.name, **found.to_dict()})
    else:
        print_lines(tiers_lines(result.name, found))
    if csv_file is not None:
        write_text(csv_file, found.to_frame().to_csv(index=False, lineterminator="\n"))
        note(f"wrote {csv_file}")
