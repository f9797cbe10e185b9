"""``memroof upgrades``: what one more SSD, more DRAM, the next PCIe or a CXL card would give."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.options import assigned, json_option, path_option, scenario_argument, set_option
from simulator.cli.output import print_json, print_lines


@click.command("upgrades", epilog="For example: memroof upgrades offload/opt-30b-t4")
@scenario_argument
@set_option
@path_option
@json_option
def command(scenario: str, assignments: tuple[str, ...], paths: tuple[Path, ...], as_json: bool) -> None:
    """Answer a scenario on builds that have more of one thing than its node, the best gain first.

    Prices are those of the catalog; --set device.NAME.price.purchase='400 USD' adds one that it lacks.
    """
    from simulator.analysis.upgrades import upgrades
    from simulator.report.memory import upgrade_lines

    found = upgrades(scenario, paths=paths, overrides=assigned(assignments))
    if as_json:
        print_json([one.to_dict() for one in found])
    else:
        print_lines(upgrade_lines(found))
