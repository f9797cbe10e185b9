"""``memroof trace``: a scenario's timeline as a Chrome trace."""

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
from simulator.cli.output import note, print_json, writing


@click.command("trace")
@scenario_argument
@click.option(
    "--perfetto", "file", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE",
    help="Write Chrome trace JSON here; ui.perfetto.dev opens it.",
)  # fmt: skip
@set_option
@path_option
@json_option
def command(
    scenario: str, file: Path, assignments: tuple[str, ...], paths: tuple[Path, ...], as_json: bool
) -> int:
    """Write what ran when: a process a device, a thread a stream, counters for the bytes resident."""
    from simulator.analysis import run
    from simulator.report.perfetto import write_trace
    from simulator.specs.errors import MemroofError

    result = run(scenario, catalog=open_catalog(paths, assigned(assignments)), detail=True)
    if result.timeline is None:
        raise MemroofError(f"{result.name}: this strategy keeps no timeline")
    with writing(file) as stream:
        count = write_trace(result.timeline, stream, result.name)
    note(f"wrote {file}: {count:,} events; open it at https://ui.perfetto.dev")
    if as_json:
        print_json({"file": str(file), "events": count, "seconds": result.timeline.makespan})
    return EXIT_OK if result.ok else EXIT_UNFIT
