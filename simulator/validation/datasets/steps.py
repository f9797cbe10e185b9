"""Measured training steps: a row's model, hardware, workload and strategy as a scenario, simulated once for each distinct one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.analysis.run import cost_model
from simulator.cost import CostModel
from simulator.specs import Catalog, Hardware, MemroofError, Model, TrainingScenario, TrainingStrategy
from simulator.specs.scenario_base import HardwareChoice
from simulator.strategy import Outcome, Setup
from simulator.training import make_plan, simulate
from simulator.validation.dataset import FloatArray, Part, labels

if TYPE_CHECKING:
    import pandas as pd

ZERO_3 = "ZeRO-3: the run of table 2 of Narayanan et al. 2021, a data set of its own"
LAYOUT = "parallel layout is not in the table"
UNCHECKED = "not verified by the source"


@dataclass(frozen=True)
class Case:
    """A measured step as a scenario.

    Attributes
    ----------
    node, nodes : str, int
        Machine of the catalog and how many of it.
    model : Model
        By its dimensions, or the catalog's.
    batch, sequence : int
        Sequences of a step, tokens of a sequence.
    strategy : TrainingStrategy
        As the row states it; what it does not state is the assumption of its source.
    rails : int, optional
        NICs of a node, where the source states another count than the catalog's node has.
    link : str, optional
        Link type of these NICs, where it is another one.
    """

    node: str
    nodes: int
    model: Model
    batch: int
    sequence: int
    strategy: TrainingStrategy
    rails: int | None = None
    link: str | None = None

    def setup(self, catalog: Catalog) -> Setup:
        """Return what a strategy works from, with the catalog's constants."""
        hardware = self._hardware(catalog)
        scenario = TrainingScenario.model_validate(
            {
                "kind": "training", "hardware": {"node": self.node, "nodes": self.nodes}, "model": self.model.name,
                "workload": {"global_batch": self.batch, "sequence": self.sequence},
            }
        )  # fmt: skip
        scenario = scenario.model_copy(update={"strategy": self.strategy})
        return Setup(
            scenario,
            self.model,
            hardware,
            cost_model(hardware, catalog.calibration(hardware.device), training=True),
        )

    def _hardware(self, catalog: Catalog) -> Hardware:
        found = catalog.hardware(HardwareChoice(node=self.node, nodes=self.nodes))
        if self.rails is None:
            return found
        network = tuple(
            (
                level.model_copy(update={"links_per_node": self.rails}),
                catalog.link(self.link) if self.link else link,
            )
            for level, link in found.network
        )
        return replace(found, network=network)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.sequence


Quantity = Callable[[Outcome, int], float]
"""The measured quantity of a row (by its position) from the outcome of its step."""


def seconds(outcome: Outcome, row: int) -> float:
    """Return the time of a step."""
    return outcome.metrics["step_time"].value


def rate(work: FloatArray) -> Quantity:
    """Return a quantity that is work (tokens, FLOP) of one GPU a second."""
    return lambda outcome, row: float(work[row]) / outcome.metrics["step_time"].value


class Simulated:
    """Predictions of rows that share cases; each distinct case is simulated once for each set of constants."""

    def __init__(
        self, cases: Sequence[Case], setups: Mapping[Case, Setup], quantity: Quantity, *, certain: bool
    ) -> None:
        self._cases, self._quantity, self._certain = cases, quantity, certain
        self._setups = {case: setups[case] for case in cases}
        self._last: tuple[Any, dict[Case, Outcome]] | None = None

    def predict(self, cost: CostModel) -> FloatArray:
        """Predicted quantity of each row."""
        outcomes = self._outcomes(cost)
        return np.array([self._quantity(outcomes[case], row) for row, case in enumerate(self._cases)])

    def errors(self, cost: CostModel) -> FloatArray:
        """Relative standard error of each row: that of the step time, or none for what has no constants (bytes)."""
        if self._certain:
            return np.zeros(len(self._cases))
        outcomes = self._outcomes(cost)
        return np.array([outcomes[case].metrics["step_time"].error for case in self._cases])

    def _outcomes(self, cost: CostModel) -> dict[Case, Outcome]:
        # errors are asked for right after predictions, with the same constants
        if self._last is None or self._last[0] is not cost.calibration:
            found = {
                case: replace(
                    simulate(
                        replace(setup, cost=cost_model(setup.hardware, cost.calibration, training=True))
                    ),
                    timeline=None,
                )
                for case, setup in self._setups.items()
            }
            self._last = (cost.calibration, found)
        return self._last[1]


def step_parts(
    frame: pd.DataFrame,
    catalog: Catalog,
    skipped: Counter[str],
    *,
    case: Callable[[Any], Case],
    measured: Callable[[pd.DataFrame], FloatArray],
    groups: Sequence[str],
    quantity: Callable[[pd.DataFrame, Sequence[Case]], Quantity] = lambda rows, cases: seconds,
    certain: bool = False,
) -> list[Part]:
    """Turn rows into parts, one for each device.

    Parameters
    ----------
    frame : DataFrame
        Rows with a column ``line``.
    case : function of a row
        The row (a named tuple) as a scenario; raises :class:`MemroofError` where it is none.
    measured : function of a frame
        Measured values [SI].
    groups : sequence of str
        Columns whose values must not be split.
    quantity : function of a frame and its cases
        How the measured quantity follows from an outcome; seconds of a step if absent.
    certain : bool
        Whether the quantity rests on no constant (bytes): it has no interval then.

    Rows whose layout the training strategy refuses are counted under what it says.
    """
    setups: dict[Case, Setup] = {}
    by_device: dict[str, list[tuple[int, Case]]] = {}
    for position, row in enumerate(frame.itertuples(index=False)):
        try:
            found = case(row)
            if found not in setups:
                setup = found.setup(catalog)
                assert isinstance(setup.scenario, TrainingScenario)  # a case makes no other
                make_plan(setup.scenario, setup.model, setup.hardware)
                setups[found] = setup
        except MemroofError as error:
            skipped[str(error).splitlines()[0]] += 1
            continue
        by_device.setdefault(setups[found].hardware.device.name, []).append((position, found))
    parts = []
    for device, chosen in by_device.items():
        rows = frame.iloc[[position for position, _ in chosen]]
        cases = [found for _, found in chosen]
        model = Simulated(cases, setups, quantity(rows, cases), certain=certain)
        parts.append(
            Part(
                device, measured(rows), model.predict, labels(rows, groups), rows["line"].to_numpy(np.int64), rows,
                None, model.errors,
            )
        )  # fmt: skip
    return parts


@lru_cache(maxsize=512)
def gpt(
    hidden: int, layers: int, heads: int, *, sequence: int, vocabulary: int = 51_200, tied: bool = True
) -> Model:
    """Return a GPT of Megatron-LM by its dimensions.

    Learned positions, layer norms and biases, an MLP of four times the width, dropout; the vocabulary is GPT-2's,
    padded to a multiple of 128 times the tensor-parallel degree, where a source gives none.
    """
    return Model(
        kind="model", name=f"gpt-{hidden}x{layers}", family="decoder", source="dimensions of a measured row",
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=sequence, position="learned", normalization="layernorm",
        activation="gelu", attention_bias=True, attention_output_bias=True, mlp_bias=True, dropout=True,
        tie_word_embeddings=tied,
    )  # fmt: skip


@lru_cache(maxsize=2048)
def fits(case: Case, catalog: Catalog) -> bool:
    """Return whether a step is predicted to fit; of several ways to run one, a submitter took one that did."""
    return simulate(case.setup(catalog)).fits


def least_recomputed(case: Case, catalog: Catalog, *, in_parts: bool = True) -> Case:
    """Return a step with the least recomputation that fits, where a source does not state it.

    What a submitter has tuned recomputes no more than it must: nothing, attention's core, or the first layers of each model
    chunk (Megatron-LM's ``block`` method), as few of them as fit; all, where nothing is predicted to fit. Without
    ``in_parts`` the software recomputes every layer or none.
    """
    for recompute in ("none", "selective") if in_parts else ("none",):
        found = _changed(case, recompute=recompute)
        if fits(found, catalog):
            return found
    if not in_parts or not fits(_changed(case, recompute="full"), catalog):
        return _changed(case, recompute="full")
    strategy = case.strategy
    places = strategy.pipeline_parallel * strategy.virtual_stages
    too_few, enough = 0, -(-case.model.num_hidden_layers // places)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if fits(_changed(case, recompute="full", recompute_layers=middle), catalog):
            enough = middle
        else:
            too_few = middle
    return _changed(case, recompute="full", recompute_layers=enough)


def _changed(case: Case, **fields: Any) -> Case:
    return replace(case, strategy=case.strategy.model_copy(update=fields))


def fastest(cases: Sequence[Case], catalog: Catalog) -> Case:
    """Return the step that is predicted to be the fastest of those that are legal and fit.

    For sources that do not state the layout: a submitter has tuned it.

    Raises
    ------
    MemroofError
        If none is legal, with what the first breaks, or none fits.
    """
    found: list[tuple[float, Case]] = []
    broken: list[MemroofError] = []
    for case in cases:
        try:
            outcome = simulate(case.setup(catalog))
        except MemroofError as error:
            broken.append(error)
            continue
        if outcome.fits:
            found.append((outcome.metrics["step_time"].value, case))
    if not found:
        raise (
            broken[0]
            if broken and len(broken) == len(cases)
            else MemroofError("no layout is predicted to fit")
        )
    return min(found, key=lambda timed: timed[0])[1]


def eight_to_a_node(gpus: float) -> int:
    """Return the nodes of eight GPUs that some GPUs fill."""
    return max(1, -(-int(gpus) // 8))
