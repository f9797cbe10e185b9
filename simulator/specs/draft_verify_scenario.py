"""Generation by a small resident model whose tokens a large one, read from flash for each round, verifies; as written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Bytes, Spec
from simulator.specs.hardware import NumberFormat
from simulator.specs.model import Natural, Positive
from simulator.specs.neuron_cache_scenario import OnDeviceWorkload
from simulator.specs.offload_scenario import OffloadScenario
from simulator.specs.scenario_base import Entry, Fraction, Share

Factor = Annotated[float, Field(ge=1.0, le=100.0)]


class Draft(Spec):
    """The small model."""

    model: str
    """Its name in the catalog."""
    weight_precision: NumberFormat | None = None
    """As the target's if absent."""


class Agreement(Spec):
    """How often the target takes what the draft proposes; the draft's confidence is right on average.

    A token's confidence is drawn from a beta distribution; it is the probability that the token is right.
    """

    confidence: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Mean of the most likely token's confidence: the share of single tokens that are right."""
    concentration: Annotated[float, Field(gt=0.0, le=1e6)] = 2.0
    """Sum of the two parameters of the distribution; few: tokens are either sure or not; many: all alike."""
    second: Share = 0.0
    """Probability that the second choice is right where the first is wrong."""


class Drafting(Spec):
    """How the draft proposes tokens, and when they are verified."""

    length: Positive | None = None
    """Tokens drafted in each round; with no ``threshold``."""
    threshold: Fraction | None = None
    """Verify once the best branch's confidence (the product of its tokens') is below this."""
    adaptive: bool = False
    """The threshold halves after a round in which all of the best branch was right, else becomes the share that was wrong."""
    longest: Positive = 64
    """Tokens drafted in a round at most."""
    tree: bool = False
    """Second choices open branches of their own, which are verified together."""
    branches: Positive = 4
    """Branches at most, with a tree."""
    continues: bool = False
    """The draft goes on while the target's weights are read, though not while the target computes."""

    @model_validator(mode="after")
    def _one_rule(self) -> Drafting:
        if (self.length is None) == (self.threshold is None):
            raise PydanticCustomError("scenario", "needs one of 'length' and 'threshold'")
        if self.length is not None:
            for key in ("adaptive", "longest"):
                if key in self.model_fields_set:
                    raise PydanticCustomError(
                        "scenario", "'{key}' decides nothing with a fixed 'length'", {"key": key}
                    )
        if "branches" in self.model_fields_set and not self.tree:
            raise PydanticCustomError("scenario", "'branches' belongs to 'tree'")
        return self


class Reading(Spec):
    """How the target's weights come from flash."""

    way: Literal["mapped", "sequential"] = "mapped"
    """By page faults, or in large requests."""
    readahead: Bytes | None = None
    """Bytes that a fault reads; 128 KiB, Linux's default, if absent."""
    faults: Positive = 1
    """Faults in flight."""
    overlap: bool = True
    """Whether a layer is computed while the next is read."""

    @model_validator(mode="after")
    def _belongs(self) -> Reading:
        for key in ("readahead", "faults"):
            if self.way == "sequential" and key in self.model_fields_set:
                raise PydanticCustomError("scenario", "'{key}' belongs to way 'mapped'", {"key": key})
        return self


class Interference(Spec):
    """What the draft costs the target while both are at work; the draft pauses while the target computes."""

    loading: Factor = 1.0
    """Time of reading over what it takes while the draft rests."""


class DraftVerifyStrategy(Spec):
    """A small model in memory, a large one behind it."""

    method: Literal["draft-verify"] = "draft-verify"
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    weight_precision: NumberFormat | None = None
    weight_group: Positive | None = None
    """Weights that share a 16-bit scale; none if absent."""
    kv_precision: NumberFormat | None = None
    memory: Bytes | None = None
    """DRAM that may be used; all of it if absent."""
    processor: str | None = None
    """Component that computes both models; the accelerator if absent."""
    memory_efficiency: Fraction | None = None
    """Share of the processor's DRAM bandwidth that products with few rows reach; by its kind if absent."""
    resident: Share | None = None
    """Share of the target that stays in memory; all of it where it fits, else none, if absent."""
    reading: Reading = Reading()
    draft: Draft | None = None
    """None: the target alone, token by token."""
    agreement: Agreement | None = None
    drafting: Drafting | None = None
    interference: Interference = Interference()
    baselines: dict[str, Drafting] = {}
    """Other ways of drafting by name; the target alone is always run."""
    seed: Natural = 0
    """Of confidences and agreement."""

    @model_validator(mode="after")
    def _together(self) -> DraftVerifyStrategy:
        given = [key for key in ("draft", "agreement", "drafting") if getattr(self, key) is not None]
        if given and len(given) < 3:
            missing = next(key for key in ("draft", "agreement", "drafting") if key not in given)
            raise PydanticCustomError(
                "scenario", "'{given}' needs '{missing}' too", {"given": given[0], "missing": missing}
            )
        if not given:
            for key in ("interference", "baselines", "seed"):
                if key in self.model_fields_set:
                    raise PydanticCustomError(
                        "scenario", "'{key}' decides nothing without a draft", {"key": key}
                    )
        if any(not name.isidentifier() or name == "standard" for name in self.baselines):
            raise PydanticCustomError(
                "scenario",
                "baselines: a name has letters, digits and '_', and 'standard' is the target alone",
            )
        return self


class DraftVerifyScenario(OffloadScenario):
    """Generate with a resident draft and a target that is read from flash."""

    grows: ClassVar[Mapping[str, str]] = {"prompt": "workload.prompt"}
    workload: OnDeviceWorkload
    strategy: DraftVerifyStrategy = DraftVerifyStrategy()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The model and its draft."""
        draft = self.strategy.draft
        named = (Entry(("strategy", "draft", "model"), "model", draft.model),) if draft else ()
        return (*super().entries, *named)
