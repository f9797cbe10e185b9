"""A fleet as written: pools of replicas behind a router, prefill apart from decode, replicas that come and go with the load."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from simulator.specs.base import ByteRate, Seconds, Spec
from simulator.specs.model import Natural, Positive
from simulator.specs.scenario_base import HardwareChoice


class Autoscaling(Spec):
    """Replicas follow the load: so many that each has ``target_requests``."""

    minimum: Positive = 1
    """Replicas that are always there; it starts with these."""
    maximum: Positive
    target_requests: Annotated[float, Field(gt=0.0)]
    """Requests in the pool for each replica, waiting or running, at which another one is started."""
    start_delay: Seconds = 0.0
    """From the decision until a new replica takes requests: a machine is found, weights are loaded."""
    idle_time: Seconds = 60.0
    """A replica that has had nothing to do for so long is stopped."""


class Pool(Spec):
    """Equal replicas: the scenario's strategy with some options changed, on hardware of their own or a part of the scenario's."""

    name: str = ""
    hardware: HardwareChoice | None = None
    replicas: Positive | None = None
    """As many as the hardware holds if absent."""
    strategy: dict[str, Any] = {}
    """Options in which this pool differs from the scenario's strategy."""
    autoscale: Autoscaling | None = None


class Fleet(Spec):
    """Replicas behind a router, all of them simulated."""

    router: Literal["round-robin", "random", "least-requests", "least-tokens", "prefix-aware"] = "round-robin"
    """Who gets a request: the next in turn, anyone, who has the fewest requests, or the fewest tokens that wait or are cached;
    prefix-aware: who has most of its prompt in the prefix cache, unless that one is much busier than another."""
    imbalance: Natural = 32
    """Requests by which a replica may be ahead of the least busy one before a prefix-aware router passes it by."""
    pools: tuple[Pool, ...] = ()
    """Kinds of replicas; one pool of the scenario's hardware and strategy if absent."""
    prefill: Pool | None = None
    """Replicas that process prompts and hand their KV cache over to those of ``decode`` (disaggregation)."""
    decode: Pool | None = None
    bandwidth: ByteRate | None = None
    """Between a GPU of ``prefill`` and one of ``decode``, each way; what the hardware has between them if absent."""
    latency: Seconds | None = None
    """Before a hand-over starts to move bytes."""
    transfer: Literal["after", "layerwise"] = "after"
    """The cache is sent when the prompt is done, or layer by layer while it is processed."""
    first_token: Literal["prefill", "decode"] = "prefill"
    """Who sends the first token: prefill, when the prompt is done, or decode, when the cache is there."""
    prefill_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Both phases run on the same GPUs, and prefill has this share of their multiprocessors (intra-GPU disaggregation)."""

    @model_validator(mode="after")
    def _consistent(self) -> Fleet:
        problem = self._problem()
        if problem:
            raise PydanticCustomError("scenario", "{message}", {"message": problem})
        return self

    @property
    def apart(self) -> bool:
        """Whether prefill and decode are apart."""
        return self.prefill is not None or self.decode is not None or self.prefill_share is not None

    def _problem(self) -> str:
        given = self.model_fields_set
        inside = self.prefill_share is not None
        if self.pools and self.apart:
            return "'pools' has no meaning beside 'prefill' and 'decode', which are the pools"
        if not inside and (self.prefill is None) != (self.decode is None):
            return "'prefill' and 'decode' belong together"
        for name in ("bandwidth", "latency", "transfer", "first_token"):
            if name in given and not self.apart:
                return f"'{name}' belongs to 'prefill' and 'decode'"
            if name in given and inside:
                return f"'{name}' has no meaning with 'prefill_share': nothing is sent within a GPU"
        if "imbalance" in given and self.router != "prefix-aware":
            return "'imbalance' belongs to router 'prefix-aware'"
        for pool in (self.prefill, self.decode) if inside else ():
            if pool is not None and (
                pool.hardware is not None or pool.replicas is not None or pool.autoscale is not None
            ):
                return "with 'prefill_share' both phases have the scenario's GPUs: pools differ in 'strategy' alone"
        for pool in self.all_pools:
            if pool.autoscale and pool.replicas is not None:
                return "'replicas' has no meaning beside 'autoscale', which says how many there are"
            if pool.autoscale and pool.autoscale.maximum < pool.autoscale.minimum:
                return "'autoscale.maximum' is below 'minimum'"
        return ""

    @property
    def all_pools(self) -> tuple[Pool, ...]:
        """The pools, prefill first."""
        if self.apart:
            return (self.prefill or Pool(name="prefill"), self.decode or Pool(name="decode"))
        return self.pools or (Pool(),)
