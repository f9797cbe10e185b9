"""Measure: a campaign of kernels, copies, collectives and steps on the user's own machine, for `memroof calibrate`.

The plan is data (:mod:`simulator.measure.campaign`), what runs it is a backend (:class:`Backend`; PyTorch's is in
:mod:`simulator.measure.backend_torch`, which alone imports torch), and the record is one CSV file with a README beside it.
"""

from simulator.measure.campaign import GRIDS, GROUPS, Case, Grid, plan
from simulator.measure.names import catalog_name
from simulator.measure.record import MEASUREMENTS, Row, read_rows, summary, write_record
from simulator.measure.run import Backend, Campaign, Facts, Skipped, Timing, UnmeasurableError, run_campaign
from simulator.measure.works import work

__all__ = [
    "GRIDS", "GROUPS", "MEASUREMENTS", "Backend", "Campaign", "Case", "Facts", "Grid", "Row", "Skipped", "Timing",
    "UnmeasurableError", "catalog_name", "plan", "read_rows", "run_campaign", "summary", "work", "write_record",
]  # fmt: skip
