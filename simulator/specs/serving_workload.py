"""The requests of a serving scenario as written: arrivals, lengths, classes, shared prefixes, turns, recorded traces."""

from __future__ import annotations

import builtins
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import Rate, Seconds, Spec
from simulator.specs.model import Natural, Positive
from simulator.specs.scenario_base import Fraction

Above = Annotated[float, Field(gt=0.0)]


class Lengths(Spec):
    """Distribution of prompt or output lengths in tokens."""

    fixed: Positive | None = None
    mean: Annotated[float, Field(gt=0)] | None = None
    """Mean of a log-normal distribution, rounded up to whole tokens."""
    sigma: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the logarithm."""
    uniform: tuple[Positive, Positive] | None = None
    values: tuple[Positive, ...] | None = None
    """An empirical distribution: one of these lengths, equally likely or by ``weights``."""
    weights: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None
    file: str | None = None
    """CSV file of an empirical distribution: a column ``tokens`` and, for a histogram, a column ``weight``."""
    maximum: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().isdecimal():
            return {"fixed": value}
        if isinstance(value, (list, tuple)):
            return {"values": value}
        return {"fixed": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_of(self) -> Lengths:
        kinds = (self.fixed, self.mean, self.uniform, self.values, self.file)
        if sum(item is not None for item in kinds) != 1:
            raise PydanticCustomError(
                "scenario", "needs one of 'fixed', 'mean', 'uniform', 'values' or 'file'"
            )
        if self.uniform and self.uniform[0] > self.uniform[1]:
            raise PydanticCustomError("scenario", "'uniform' must be low, high")
        if self.values is not None and not self.values:
            raise PydanticCustomError("scenario", "'values' needs at least one length")
        if self.weights is not None and (self.values is None or len(self.weights) != len(self.values)):
            raise PydanticCustomError("scenario", "'weights' belong to 'values', one each")
        if self.weights is not None and not sum(self.weights) > 0.0:
            raise PydanticCustomError("scenario", "'weights' must not all be 0")
        if self.sigma and self.mean is None:
            raise PydanticCustomError("scenario", "'sigma' belongs to 'mean'")
        return self


class RequestRow(Spec):
    """One request of a given list."""

    arrival: Seconds
    prompt: Positive
    output: Positive
    priority: int = 0
    """The lower goes first, where the scheduler's order is by priority."""


class SharedPrefix(Spec):
    """Tokens that requests begin with and have in common: system prompts, few-shot examples, a document."""

    length: Lengths
    """Of each prefix; the prompt comes after it."""
    groups: Positive = 1
    """Different prefixes; a request has one of them."""
    share: Fraction = 1.0
    """Share of the requests (of the sessions, where there are turns) that have one."""
    zipf: Annotated[float, Field(ge=0.0)] = 0.0
    """Exponent of their popularity: the k-th is chosen in proportion to k to the minus this; 0: all alike."""


class Session(Spec):
    """Turns of a conversation: each prompt is all that was said so far and a new message of length ``prompt``."""

    turns: Lengths
    think_time: Seconds = 0.0
    """Between an answer and the next turn; the mean where it is exponential."""
    think: Literal["fixed", "exponential"] = "exponential"
    maximum: Positive | None = None
    """Tokens of history, message and answer at which a session ends early."""


class RequestClass(Spec):
    """Requests of one kind."""

    name: str = ""
    share: Above = 1.0
    """Share of the arrivals, relative to those of the other classes."""
    prompt: Lengths
    output: Lengths
    priority: int = 0
    """The lower goes first, where the scheduler's order is by priority."""
    prefix: SharedPrefix | None = None
    session: Session | None = None


class Trace(Spec):
    """A recorded trace of arrivals and lengths.

    ``azure``: CSV with TIMESTAMP, ContextTokens, GeneratedTokens. ``mooncake``: a JSON object a line with timestamp in
    milliseconds, input_length, output_length, hash_ids. ``csv``: columns arrival [s], prompt, output and, where they are
    there, prefix (identifiers of prompt blocks, separated by spaces), priority, class.
    """

    file: str
    layout: Literal["azure", "mooncake", "csv"] | None = None
    """What the file's columns say, if absent."""
    block_tokens: Positive | None = None
    """Tokens of a block that an identifier stands for; 512 in the layout of Mooncake, 16 in plain CSV."""
    speed: Above = 1.0
    """Arrivals come this many times as fast as recorded."""
    start: Seconds = 0.0
    """Recorded time at which to begin."""
    duration: Seconds | None = None
    """Recorded time that is replayed; to the end if absent."""


_OWN = ("prompt", "output", "prefix", "session")


class ServingWorkload(Spec):
    """Requests: random arrivals, all at once (offline), a closed loop of clients, a given list, or a recorded trace."""

    arrival: Literal["poisson", "gamma", "offline", "closed", "list", "trace"] = "poisson"
    rate: Rate | None = None
    """Arrivals per second of Poisson or gamma arrivals: of requests, or of sessions where there are turns."""
    coefficient_of_variation: Above | None = None
    """Of the gaps between gamma arrivals: 1 is Poisson, more is burstier."""
    concurrency: Positive | None = None
    """Clients of a closed loop: each sends its next request when the one before is answered."""
    think_time: Seconds | None = None
    """Between an answer and the client's next request (session, where there are turns), of a closed loop; none if absent."""
    requests: Positive | None = None
    """How many are simulated; 500 if absent, or all of a list or trace."""
    prompt: Lengths | None = None
    output: Lengths | None = None
    priority: int = 0
    """The lower goes first, where the scheduler's order is by priority."""
    prefix: SharedPrefix | None = None
    session: Session | None = None
    classes: tuple[RequestClass, ...] | None = None
    """A mix of several kinds of requests, each with lengths of its own."""
    list: tuple[RequestRow, ...] | None = None
    trace: Trace | None = None
    seed: Natural = 0

    @model_validator(mode="after")
    def _complete(self) -> ServingWorkload:
        random = self.arrival in ("poisson", "gamma")
        if random and self.rate is None:
            raise PydanticCustomError(
                "scenario",
                "{kind} arrivals need a 'rate' such as '5 req/s'",
                {"kind": self.arrival.capitalize()},
            )
        for name, arrival in (
            ("coefficient_of_variation", "gamma"), ("concurrency", "closed"), ("list", "list"), ("trace", "trace"),
        ):  # fmt: skip
            if (self.arrival == arrival) != (getattr(self, name) is not None):
                raise PydanticCustomError(
                    "scenario",
                    "'{name}' and arrival '{arrival}' belong together",
                    {"name": name, "arrival": arrival},
                )
        if self.think_time is not None and self.concurrency is None:
            raise PydanticCustomError("scenario", "'think_time' belongs to arrival 'closed'")
        if self.arrival == "list" and not self.list:
            raise PydanticCustomError("scenario", "'list' needs at least one {arrival, prompt, output}")
        return self._check_content()

    def _check_content(self) -> ServingWorkload:
        own = [name for name in (*_OWN, "priority") if name in self.model_fields_set]
        given = self.arrival in ("list", "trace")
        if (given and (own or self.classes)) or (self.classes is not None and own):
            other = self.arrival if given else "classes"
            raise PydanticCustomError(
                "scenario",
                "'{name}' has no meaning beside '{other}', which says it for each {what}",
                {
                    "name": own[0] if own else "classes",
                    "other": other,
                    "what": "request" if given else "class",
                },
            )
        if self.classes is not None and not self.classes:
            raise PydanticCustomError("scenario", "'classes' needs at least one class")
        if not given and self.classes is None and (self.prompt is None or self.output is None):
            raise PydanticCustomError("scenario", "needs the lengths 'prompt' and 'output', or 'classes'")
        return self

    @property
    def kinds(self) -> builtins.tuple[RequestClass, ...]:
        """The classes of random requests; a plain workload is one without a name, a given list has none."""
        if self.classes is not None:
            return self.classes
        if self.prompt is None or self.output is None:
            return ()
        return (
            RequestClass.model_construct(
                name="", share=1.0, prompt=self.prompt, output=self.output, priority=self.priority,
                prefix=self.prefix, session=self.session,
            ),
        )  # fmt: skip
