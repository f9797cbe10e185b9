"""``memroof calibrate``: fit a device's constants on measured rows."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simulator.cli.options import json_option, open_catalog, path_option
from simulator.cli.output import note, print_json, print_lines

if TYPE_CHECKING:
    from simulator.validation import Fitted


@click.command("calibrate")
@click.option(
    "--measurements",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder laid out as source/file.csv.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    help="Device to fit (repeatable); all with rows if absent.",
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS",
    help="Operator class to fit (repeatable); all if absent.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for DEVICE.yaml; the folder of the class-wide constants if absent.",
)
@click.option(
    "--architecture",
    "architectures",
    is_flag=True,
    help="Fit nothing: write ARCHITECTURE.yaml from the devices' files, for devices that are not measured.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the groups that are held out.")
@click.option("--date", metavar="YYYY-MM-DD", help="Date of the fit in the file; today if absent.")
@path_option
@json_option
def command(
    measurements: Path,
    devices: tuple[str, ...],
    classes: tuple[str, ...],
    output: Path | None,
    architectures: bool,
    seed: int,
    date: str | None,
    paths: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Fit constants on measured rows, judge them on groups held out, and write DEVICE.yaml."""
    from simulator.report.validation import fitted_lines
    from simulator.specs import MemroofError
    from simulator.specs.errors import unknown
    from simulator.validation import fit_device, known_fits, write_architectures, write_calibration
    from simulator.validation.fit import devices_with_rows

    catalog = open_catalog(paths)
    for name in classes:
        if name not in {fit.operator_class for fit in known_fits()}:
            raise MemroofError(
                unknown("operator class", name, {str(fit.operator_class) for fit in known_fits()})
            )
    fits = [fit for fit in known_fits() if not classes or fit.operator_class in classes]
    folder = output or catalog.file("calibration", "gpu").parent
    if architectures:
        if devices:
            raise click.UsageError("--architecture takes all devices of the folder; leave --device out")
        inherited = write_architectures(fits, measurements, catalog, folder)
        if as_json:
            print_json([dataclasses.asdict(one) for one in inherited])
        else:
            print_lines([f"{one.architecture} {one}" for one in inherited])
        return 0
    chosen = devices or devices_with_rows(fits, measurements, catalog)
    if not chosen:
        raise MemroofError(f"{measurements}: no rows that constants can be fitted on")
    written: list[Fitted] = []
    for device in chosen:
        results = fit_device(
            device, fits, measurements, catalog, seed=seed, date=date or datetime.date.today().isoformat()
        )
        for fitted in results:
            if not fitted.usable:
                note(
                    f"left out {device} {fitted.operator_class}: held-out rows scatter by {fitted.spread:.0%}, so that it keeps "
                    "the constants it had; was the machine busy, or does its file state other peaks?"
                )
        results = tuple(fitted for fitted in results if fitted.usable)
        if not results:
            continue
        file = folder / f"{device}.yaml"
        write_calibration(file, device, results)
        written += results
        if not as_json:
            print_lines(fitted_lines(results))
        note(f"wrote {file}")
    if not written:
        raise MemroofError(f"{measurements}: the rows scatter too much for constants")
    if as_json:
        print_json(
            [
                {"device": f.device, "class": f.operator_class, "spread": f.spread, **f.record.model_dump(),
                 "constants": {f"{s}.{n}": v for (s, n), v in f.values.items()}}
                for f in written
            ]
        )  # fmt: skip
    return 0
