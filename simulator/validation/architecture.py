"""What devices without measurements inherit: the constants of their architecture's best-measured device, in wider doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.specs import Calibration, Catalog, MemroofError, OperatorClass
from simulator.specs.base import validate
from simulator.specs.calibration import OPERATOR_CLASSES
from simulator.specs.source import read_document
from simulator.validation.dataset import DataSet, constants_for
from simulator.validation.datasets import known
from simulator.validation.fit import Fit, apply, spreads
from simulator.validation.write import write_content

WIDER = 1.5
"""Factor on a device's error where no other device of the architecture is measured."""
SOURCE = "constants of the architecture's best-measured device, by operator class"


@dataclass(frozen=True)
class Inherited:
    """One class of an architecture: whose constants, in how much doubt, and on which other devices they were tried."""

    architecture: str
    operator_class: OperatorClass
    device: str
    own_error: float
    error: float
    tried_on: tuple[str, ...]

    def __str__(self) -> str:
        tried = (
            f"off by {self.error:.1%} on {' and '.join(self.tried_on)}"
            if self.tried_on
            else f"{WIDER:g} times that since no other device is measured"
        )
        return f"{self.operator_class}: {self.device}, {self.own_error:.1%} on its own rows, {tried}"


def write_architectures(
    fits: Sequence[Fit], measurements: Path, catalog: Catalog, folder: Path
) -> tuple[Inherited, ...]:
    """Write (or update) ``ARCHITECTURE.yaml`` from the devices' files in a folder.

    Parameters
    ----------
    fits : sequence of Fit
        Classes to write; the others keep what a file says of them.
    measurements : Path
        Rows of the other devices of an architecture, on which one device's constants are tried.
    catalog : Catalog
        Knows the devices.
    folder : Path
        Holds the devices' files and gets the architectures'.

    Returns
    -------
    tuple of Inherited
        The error is the larger of the device's own and of the spread that its constants leave on the other devices; 1.5
        times its own where there is no other.

    Raises
    ------
    MemroofError
        If no file in the folder holds a fit of these classes.
    """
    files = _device_files(catalog, folder)
    written: list[Inherited] = []
    for architecture in sorted({catalog.processor(device).architecture for device in files}):
        devices = {d: file for d, file in files.items() if catalog.processor(d).architecture == architecture}
        found = [(fit, _inherit(fit, architecture, devices, measurements, catalog)) for fit in fits]
        inherited = [(fit, one) for fit, one in found if one is not None]
        if inherited:
            _update(folder / f"{architecture}.yaml", architecture, inherited, folder)
            written += [one for _, one in inherited]
    if not written:
        classes = ", ".join(fit.operator_class for fit in fits)
        raise MemroofError(f"{folder}: no device's file holds a fit of {classes}")
    return tuple(written)


def _device_files(catalog: Catalog, folder: Path) -> Mapping[str, Calibration]:
    names = set(catalog.names("device"))
    return {
        file.stem: validate(read_document(file), Calibration)
        for file in sorted(folder.glob("*.yaml"))
        if file.stem in names
    }


def _inherit(
    fit: Fit, architecture: str, devices: Mapping[str, Calibration], measurements: Path, catalog: Catalog
) -> Inherited | None:
    name = fit.operator_class
    fitted = {device: file.fits[name].rows for device, file in devices.items() if name in file.fits}
    if not fitted:
        return None
    best = max(fitted, key=lambda device: (fitted[device], device))
    given = {
        (section, key): getattr(getattr(devices[best], section), key) for section, key in _constants(fit)
    }
    values = {place: float(value) for place, value in given.items() if value is not None}
    residuals, tried = [np.zeros(0)], []
    for other in fitted:
        if other != best:
            found = _residuals(fit, other, values, measurements, catalog)
            residuals.append(found)
            tried += [other] if len(found) else []
    own = devices[best].error[name]
    off = np.concatenate(residuals)
    error = max(own, spreads(off, np.arange(len(off)).astype(str))[0]) if len(off) else own * WIDER
    return Inherited(architecture, name, best, own, min(error, 1.0), tuple(tried))


def _residuals(
    fit: Fit, device: str, values: Mapping[tuple[str, str], float], measurements: Path, catalog: Catalog
) -> Any:
    """Log residuals of a device's judged rows with other constants."""
    datasets: Mapping[str, DataSet] = {dataset.name: dataset for dataset in known()}
    cost = constants_for(catalog, device, apply(catalog.calibration(catalog.processor(device)), values))
    found = [np.zeros(0)]
    for name in fit.judged or fit.datasets:
        file = measurements / name.partition("#")[0]
        if file.is_file():
            parts = datasets[name].load(file, catalog).parts
            found += [np.log(p.predict(cost)) - np.log(p.measured) for p in parts if p.device == device]
    return np.concatenate(found)


def _constants(fit: Fit) -> list[tuple[str, str]]:
    chosen = {key for choice in fit.choices for key in choice}
    return [*((c.section, c.name) for c in fit.constants), *sorted(chosen)]


def _update(file: Path, architecture: str, inherited: Sequence[tuple[Fit, Inherited]], folder: Path) -> None:
    content: dict[str, Any] = read_document(file).data if file.is_file() else {}
    notes = dict(note.split(": ", 1) for note in str(content.get("note", "")).split("; ") if ": " in note)
    for fit, one in inherited:
        device = read_document(folder / f"{one.device}.yaml").data
        for section, key in _constants(fit):
            if key in device.get(section, {}):
                content.setdefault(section, {})[key] = device[section][key]
            else:
                content.get(section, {}).pop(key, None)
        content.setdefault("error", {})[one.operator_class] = f"{one.error:.3g}"
        notes[one.operator_class] = str(one).split(": ", 1)[1]
    content["note"] = "; ".join(f"{name}: {notes[name]}" for name in OPERATOR_CLASSES if name in notes)
    write_content(file, architecture, SOURCE, content)
