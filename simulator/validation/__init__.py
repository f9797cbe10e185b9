"""Truth: measured data sets, how far predictions are off, and the fitting of constants."""

from simulator.validation.architecture import Inherited, write_architectures
from simulator.validation.dataset import DataSet, Loaded, Part, TableDataSet
from simulator.validation.fit import Constant, Fit, Fitted, fit_device, known_fits
from simulator.validation.run import SHIPPED, validate
from simulator.validation.score import Bound, Score, committed_bounds, score
from simulator.validation.write import write_calibration

__all__ = [
    "SHIPPED", "Bound", "Constant", "DataSet", "Fit", "Fitted", "Inherited", "Loaded", "Part", "Score", "TableDataSet",
    "committed_bounds", "fit_device", "known_fits", "score", "validate", "write_architectures", "write_calibration",
]  # fmt: skip
