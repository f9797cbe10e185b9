"""Generate with a draft and a target from flash: rounds drawn, lowered and run; the target alone and stated baselines too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.cost import relative_error
from simulator.engine import Timeline, execute
from simulator.offload.answer import bound_by, by_class, critical, link_table, memory_uses
from simulator.offload.columns import Rows
from simulator.offload.draft_verify.lower import READ, lower
from simulator.offload.draft_verify.plan import Plan, make_plan
from simulator.offload.draft_verify.rounds import Round, draw_rounds, token_time
from simulator.offload.emit import Emitter
from simulator.specs import OperatorClass
from simulator.specs.draft_verify_scenario import Drafting
from simulator.strategy import Metric, Outcome, Setup, constants_used

STANDARD = "standard"
TOKENS = 20_000
"""Tokens that rounds are drawn for: their mean moves by some 1 % from seed to seed."""
SHOWN = 12
"""Rounds that the timeline shows."""
LONGEST = 16
"""Longest draft in the table of fixed lengths."""
Array = npt.NDArray[Any]
ALONE = Round(0, 1, 1, 0)
"""A pass of the target by itself."""
SOURCES = (
    "Xu et al. 2023, arXiv:2309.04255 (LLMCad): token trees, adaptive fallback, drafts while the target is read",
    "Leviathan et al. 2023, arXiv:2211.17192: tokens that a round of speculative decoding brings",
)


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate the generation of one sequence.

    Parameters
    ----------
    setup : Setup
        A draft-verify scenario with its models and hardware.
    detail : bool
        Draw ten times as many tokens.

    Returns
    -------
    Outcome
        Of an average token; with the speed-up over the target alone and over each baseline.

    Raises
    ------
    MemroofError
        For a combination that is refused; see :func:`simulator.offload.draft_verify.plan.make_plan`.
    """
    plan = make_plan(setup)
    strategy = plan.strategy
    alone = _run(replace(plan, draft=None), [ALONE] * SHOWN)
    if strategy.drafting is None:
        return _outcome(setup, alone, {})
    tokens = TOKENS * (10 if detail else 1)
    others = {STANDARD: alone} | {
        name: _run(plan, _drawn(plan, drafting, tokens)) for name, drafting in strategy.baselines.items()
    }
    return _outcome(setup, _run(plan, _drawn(plan, strategy.drafting, tokens)), others)


@dataclass(frozen=True, slots=True)
class Pass:
    """One verification, as the engine runs it: seconds, and those in which flash and the processor are busy."""

    time: float
    flash: float
    computing: float
    read: float


@dataclass(frozen=True)
class Ran:
    """Rounds one after the other: each its drafts and a verification; the first of them on a timeline."""

    plan: Plan
    rounds: Sequence[Round]
    passes: Mapping[tuple[int, int], Pass]
    """Verifications by candidates and drafts made meanwhile."""
    emit: Emitter
    timeline: Timeline = field(repr=False)

    @cached_property
    def tokens(self) -> int:
        """Tokens that all rounds brought."""
        return sum(each.taken for each in self.rounds)

    @cached_property
    def drafted(self) -> float:
        """Passes of the draft for each token, those apart that are made while the target is read."""
        return sum(each.drafted for each in self.rounds) / self.tokens

    def mean(self, key: str) -> float:
        """Return what verifications come to for each token."""
        counts = Counter((each.candidates, each.ahead) for each in self.rounds)
        return sum(n * float(getattr(self.passes[kind], key)) for kind, n in counts.items()) / self.tokens

    @cached_property
    def token_time(self) -> float:
        """Seconds of a token."""
        return self.drafted * self.plan.draft_time() + self.mean("time")

    @property
    def computing(self) -> float:
        """Seconds of a token in which the processor is busy."""
        return self.drafted * self.plan.draft_time() + self.mean("computing")

    @cached_property
    def row(self) -> Rows:
        """Seconds of a token by columns, divided as those of the timeline."""
        return critical(self.emit, self.timeline) * (self.token_time / self.timeline.makespan)


def _drawn(plan: Plan, drafting: Drafting, tokens: int) -> list[Round]:
    strategy = plan.strategy
    assert strategy.agreement is not None  # the schema asks for it with a draft
    # the draft pauses while the target computes
    room = plan.load_time() * strategy.interference.loading - plan.verify_time()
    ahead = min(drafting.length or drafting.longest, max(0, int(room / plan.draft_time())))
    return draw_rounds(strategy.agreement, drafting, tokens, ahead, np.random.default_rng(strategy.seed))


def _run(plan: Plan, rounds: Sequence[Round]) -> Ran:
    emit = lower(plan, rounds[:SHOWN])
    kinds = dict.fromkeys((each.candidates, each.ahead) for each in rounds)
    passes = {(candidates, ahead): _pass(plan, candidates, ahead) for candidates, ahead in kinds}
    return Ran(plan, rounds, passes, emit, execute(emit.program))


def _pass(plan: Plan, candidates: int, ahead: int) -> Pass:
    emit = lower(plan, [Round(0, candidates, 1, ahead)])
    timeline = execute(emit.program)
    busy = timeline.busy()
    read = sum(emit.carried.get(plan.flash.channel.name, {}).values())
    return Pass(timeline.makespan, busy.get(READ, 0.0), busy.get(plan.worker.name, 0.0), read)


# --- outcome ---------------------------------------------------------------------------------------------------------


def _outcome(setup: Setup, ran: Ran, others: Mapping[str, Ran]) -> Outcome:
    errors = setup.cost.calibration.error
    uses = memory_uses(ran.emit, ran.timeline)
    return Outcome(
        headline="time_per_output_token",
        metrics=_metrics(ran, others, errors),
        memory=uses,
        class_times=by_class(ran.row),
        bottlenecks=bound_by(ran.row),
        total_time=ran.token_time,
        assumptions=_assumptions(setup, ran, fits=all(use.free >= 0 for use in uses)),
        sources=SOURCES,
        timeline=ran.timeline,
        busy_fraction=min(1.0, ran.computing / ran.token_time),
        tables={
            "links": link_table(ran.emit, ran.timeline.makespan),
            "rounds": _rounds(ran),
            **_lengths(ran, others),
        },
        class_errors=dict(errors),
    )


def _rounds(ran: Ran) -> dict[str, Array]:
    return {
        key: np.array([getattr(each, key) for each in ran.rounds])
        for key in ("drafted", "candidates", "taken", "ahead")
    }


def _lengths(ran: Ran, others: Mapping[str, Ran]) -> dict[str, dict[str, Array]]:
    """Return what a token would take with each fixed length of drafts, in closed form, if all tokens were alike."""
    agreement = ran.plan.strategy.agreement
    if agreement is None:
        return {}
    draft, verify = ran.plan.draft_time(), others[STANDARD].token_time
    lengths = np.arange(1, LONGEST + 1)
    times = [token_time(draft, verify, length, agreement.confidence) for length in lengths.tolist()]
    return {"lengths": {"length": lengths, "time_per_output_token": np.array(times)}}


def _metrics(ran: Ran, others: Mapping[str, Ran], errors: Mapping[OperatorClass, float]) -> dict[str, Metric]:
    time, error = ran.token_time, _error(ran, errors)
    flash = ran.mean("flash")
    metrics = {
        "time_per_output_token": Metric("time per output token", time, "seconds", error, "lower"),
        "decode_throughput": Metric("output tokens per second", 1.0 / time, "1/s", error, "higher"),
        "flash_bytes": Metric("bytes read from flash per token", ran.mean("read"), "bytes", better="lower"),
        "flash_time": Metric("time in which flash is read per token", flash, "seconds", errors.get("transfer", 0.0)),
        "flash_share": Metric("share of time in which flash is read", flash / time, "fraction", better="lower"),
        "compute_time": Metric("time of computations per token", ran.computing, "seconds", error),
        "target_bytes": Metric("weights of the target that a pass uses", ran.plan.target.used_bytes, "bytes"),
    }  # fmt: skip
    if ran.plan.draft is not None:
        count = len(ran.rounds)
        metrics |= {
            "draft_time": Metric("time of one pass of the draft", ran.plan.draft_time(), "seconds", error),
            "tokens_per_round": Metric("tokens that a verification brings", ran.tokens / count, "count", better="higher"),
            "drafted_per_round": Metric("passes of the draft before a verification", ran.drafted * ran.tokens / count, "count"),
        }  # fmt: skip
        metrics |= _verification(ran)
    for name, other in others.items():
        slower, spread = other.token_time, _error(other, errors)
        metrics[f"{name}_time_per_output_token"] = Metric(
            f"time per output token, {name}", slower, "seconds", spread, "lower"
        )
        metrics[f"speedup_over_{name}"] = Metric(
            f"speed-up over {name}", slower / time, "ratio", math.hypot(error, spread), "higher"
        )
        if name != STANDARD:
            gained = others[STANDARD].token_time / slower
            metrics[f"{name}_speedup_over_standard"] = Metric(
                f"speed-up over standard, {name}", gained, "ratio", spread, "higher"
            )
    return metrics


TOGETHER = 10
"""Tokens that are verified at once in the comparison with one by one (Xu et al. 2023, figure 9)."""


def _verification(ran: Ran) -> dict[str, Metric]:
    """Return what verifying ten tokens at once saves over one by one."""
    alone = replace(ran.plan, draft=None)
    one, many = (_pass(alone, tokens, 0).time for tokens in (1, TOGETHER))
    label = f"speed-up of verifying {TOGETHER} tokens at once"
    return {"verification_speedup": Metric(label, TOGETHER * one / many, "ratio", 0.0, "higher")}


def _error(ran: Ran, errors: Mapping[OperatorClass, float]) -> float:
    return float(relative_error(by_class(ran.row), errors))


def _assumptions(setup: Setup, ran: Ran, *, fits: bool) -> tuple[str, ...]:
    plan = ran.plan
    found = [
        constants_used(setup.cost.calibration),
        "products with few rows are a roofline over the memory's port, without time between kernels",
        "the target is computed on the same processor as the draft, which pauses for it",
    ]
    if setup.model.family == "encoder-decoder":
        found.append(
            "of an encoder-decoder: steps of the decoder; the encoder has run, and keys of its output are not counted"
        )
    if plan.away:
        found.append(
            f"{plan.away:.0%} of what the target's pass uses is read from flash at {plan.rate / 1e9:.2f} GB/s"
        )
    if plan.draft is not None:
        found += [
            "the draft's confidence is drawn from a beta distribution and right on average; tokens are independent",
            f"{len(ran.rounds)} rounds are drawn with seed {plan.strategy.seed}",
        ]
    if not fits:
        found.append("times are as if the memories that are too small were large enough")
    return tuple(found)
