"""A fleet at work: requests come to a router, pools of members serve them on one clock, replicas come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from simulator.engine import Program, Simulation, Timeline
from simulator.engine.simulation import Handle
from simulator.serving.arrivals import Arrivals
from simulator.serving.disaggregate import DecodeMember, PrefillMember, Way
from simulator.serving.machine import Places, declare
from simulator.serving.member import Machine, Member
from simulator.serving.plan import ReplicaPlan
from simulator.serving.router import Router
from simulator.serving.served import Served
from simulator.serving.workload import Floats, Integers, Requests
from simulator.specs.serving_fleet import Autoscaling

Role = Literal["whole", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Equal members of a fleet.

    Attributes
    ----------
    name : str
        As the answer calls it.
    role : str
        Whole requests, or one phase.
    plan : ReplicaPlan
        Of one member.
    replicas : int
        At most; each is as many members as it has groups that attend together.
    autoscale : Autoscaling, optional
        How many of them there are at a time.
    bandwidth : float
        Of the links of one member, each way, to where caches go or come from [B/s].
    """

    name: str
    role: Role
    plan: ReplicaPlan
    replicas: int
    autoscale: Autoscaling | None = None
    bandwidth: float = np.inf

    @property
    def groups(self) -> int:
        """Members of a replica: groups of GPUs that attend together."""
        return self.plan.layout.data

    @property
    def gpus(self) -> int:
        """GPUs of all replicas, at most."""
        return self.replicas * self.plan.layout.gpus


@dataclass(frozen=True, slots=True)
class HandOver:
    """How caches are handed over between pools."""

    latency: float = 0.0
    bytes_per_token: float = 0.0
    """Of all ranks that they go to [B]."""
    layers: int = 1
    """Pieces that are sent while a prompt is processed; 1: all of it afterwards."""
    within: bool = False
    """Both phases share each GPU: nothing is sent."""
    first_token_late: bool = False
    """The first token goes out when the cache has arrived."""


@dataclass(frozen=True)
class FleetServed:
    """A run of a fleet.

    Attributes
    ----------
    whole : Served
        All requests in order of arrival; accounts and logs of all members together.
    members : dict of str to Member
        By name.
    pool_of : dict of str to int
        Index of each member's pool.
    up : dict of str to list of (float, float)
        When each replica was there, starting among it [s].
    handed_over : array, shape (n,)
        Between the end of each prompt and the arrival of its cache; not a number where nothing was handed over [s].
    sent : float
        Bytes handed over [B].
    """

    whole: Served
    members: dict[str, Member]
    pool_of: dict[str, int]
    up: dict[str, list[tuple[float, float]]]
    handed_over: Floats
    sent: float

    def of_pool(self, pool: int) -> list[Member]:
        """Members of a pool."""
        return [member for name, member in self.members.items() if self.pool_of[name] == pool]


def serve_fleet(
    requests: Requests,
    pools: Sequence[PoolPlan],
    router: Router,
    hand_over: HandOver | None = None,
    *,
    one_by_one: bool = False,
) -> FleetServed:
    """Serve requests on a fleet.

    Parameters
    ----------
    requests : Requests
        Of the whole fleet.
    pools : sequence of PoolPlan
        Of role ``whole``, or one that prefills and one that decodes.
    router : Router
        Who gets a request; who decodes it is chosen by the same policy.
    hand_over : HandOver, optional
        Between prefill and decode.
    one_by_one : bool
        A task for each iteration.
    """
    return _Fleet(requests, pools, router, hand_over or HandOver(), one_by_one).run()


@dataclass
class _Pool:
    """The replicas of a pool: each several members; which take requests, and since when."""

    spec: PoolPlan
    replicas: list[list[Member]] = field(default_factory=list)
    on: list[bool] = field(default_factory=list)
    since: list[float | None] = field(default_factory=list)
    idle_since: list[float] = field(default_factory=list)
    up: list[list[tuple[float, float]]] = field(default_factory=list)

    @property
    def open(self) -> list[Member]:
        """Members that take requests, one of each replica first, so that turns go round the replicas."""
        on = [replica for replica, here in zip(self.replicas, self.on, strict=True) if here]
        return [replica[group] for group in range(self.spec.groups) for replica in on]


class _Fleet:
    def __init__(
        self,
        requests: Requests,
        pools: Sequence[PoolPlan],
        router: Router,
        hand_over: HandOver,
        one_by_one: bool,
    ) -> None:
        self.requests, self.router, self.hand_over = requests, router, hand_over
        self.decode_router = Router(router.policy, router.imbalance, 1)
        self.arrivals = Arrivals(requests, pools[0].plan.policy)
        self.due: Handle | None = None
        self.due_at = np.inf
        self.pools = [_Pool(spec) for spec in pools]
        self.pool_of: dict[str, int] = {}
        self.replica_of: dict[str, int] = {}
        self.links: dict[str, int] = {}
        self.sent = 0.0
        self.first_token, self.admitted, self.end = (np.full(len(requests), np.nan) for _ in range(3))
        self.found = np.zeros(len(requests), np.int64)
        program = Program("serving fleet")
        places = self._declare(program)
        self.simulation = Simulation(program)
        # what arrives is told by the fleet: members know no times and no sessions
        plain = replace(
            requests, arrival=np.full(len(requests), np.inf), concurrency=0, following=None, pause=None
        )
        for index, pool in enumerate(self.pools):
            for replica in range(pool.spec.replicas):
                self._start_replica(pool, index, replica, plain, places, one_by_one)

    # --- building ---

    def _declare(self, program: Program) -> dict[str, Places]:
        places: dict[str, Places] = {}
        for pool in self.pools:
            spec, caching = pool.spec, pool.spec.plan.caching
            for name in _names(spec):
                if spec.role == "decode" and self.hand_over.within:
                    twin = places[name.replace(f"{spec.name} ", f"{self.pools[0].spec.name} ", 1)]
                    places[name] = twin._replace(stream=program.stream(f"{name}: replica"))
                    continue
                places[name] = declare(
                    program,
                    f"{name}: ",
                    ("memory", spec.plan.usable),
                    spec.plan.resident,
                    caching.lower,
                    caching.swap,
                )
                if spec.role != "whole" and not self.hand_over.within:
                    way = "out" if spec.role == "prefill" else "in"
                    self.links[name] = program.link(f"{name}: hand-over {way}", spec.bandwidth)
        return places

    def _start_replica(
        self,
        pool: _Pool,
        index: int,
        replica: int,
        requests: Requests,
        places: dict[str, Places],
        one_by_one: bool,
    ) -> None:
        spec, groups = pool.spec, []
        for name in _names(spec)[replica * spec.groups : (replica + 1) * spec.groups]:
            machine = Machine(name, self.simulation, places[name])
            own = (
                replace(requests, output=np.ones_like(requests.output))
                if spec.role == "prefill"
                else requests
            )
            given = (
                machine,
                self.arrivals.at,
                self._answered,
                own,
                spec.plan.policy,
                spec.plan.cache,
                spec.plan.pricer,
            )
            parts = spec.plan.caching.parts(own, spec.plan.cache)
            member: Member
            if spec.role == "prefill":
                member = PrefillMember(*given, exports=self._goes_on, one_by_one=one_by_one, **parts)
            elif spec.role == "decode":
                member = DecodeMember(*given, ready=self._landed, one_by_one=one_by_one, **parts)
            else:
                member = Member(*given, one_by_one=one_by_one, **parts)
            self._share(member)
            self.pool_of[name], self.replica_of[name] = index, replica
            groups.append(member)
        there = spec.autoscale is None or replica < spec.autoscale.minimum
        pool.replicas.append(groups)
        pool.on.append(there)
        pool.since.append(0.0 if there else None)
        pool.idle_since.append(0.0)
        pool.up.append([])

    def _share(self, member: Member) -> None:
        """What is known of a request is one, whoever serves it; no two members have it at once in the same phase."""
        member.first_token, member.admitted, member.found = self.first_token, self.admitted, self.found
        if self.hand_over.within and isinstance(member, DecodeMember):
            prefills = [m for replica in self.pools[0].replicas for m in replica]
            twin = prefills[sum(len(replica) for replica in self.pools[1].replicas)]
            member.twin, twin.twin = twin, member

    # --- running ---

    def run(self) -> FleetServed:
        self._look_out()
        timeline = self.simulation.run()
        return self._collect(timeline)

    def _look_out(self) -> None:
        """Be called when the next request arrives."""
        if self.arrivals.next < self.due_at:
            if self.due is not None:
                self.due.cancel()
            self.due_at = self.arrivals.next
            self.due = self.simulation.at(self.due_at, self._arrive)

    def _arrive(self) -> None:
        self.due, self.due_at = None, np.inf
        self._take_in()

    def _take_in(self) -> None:
        touched: dict[str, Member] = {}
        for request in self.arrivals.take(self.simulation.now):
            members = [m for pool in self.pools if pool.spec.role != "decode" for m in pool.open]
            member = self.router.choose(members, request)
            member.give(request)
            touched[member.machine.name] = member
            self._grow(self.pools[self.pool_of[member.machine.name]])
        for member in touched.values():
            member.look()
        self._look_out()

    def _answered(self, member: Member, request: int, now: float) -> None:
        pool = self.pools[self.pool_of[member.machine.name]]
        if isinstance(member, PrefillMember) and self._goes_on(request):
            self._hand_over(member, request)
        else:
            self.end[request] = now
            self.arrivals.answer(request, now)
            self._take_in()
        if pool.spec.autoscale:
            self._rest(pool, self.replica_of[member.machine.name])

    def _goes_on(self, request: int) -> bool:
        return bool(self.requests.output[request] > 1)

    def _hand_over(self, member: PrefillMember, request: int) -> None:
        pool = self.pools[1]
        if self.hand_over.within and isinstance(member.twin, DecodeMember):
            target: Member = member.twin
        else:
            target = self.decode_router.choose(pool.open, request)
        given = self.hand_over
        if given.within:
            way = Way((), 0.0, 0.0)
        else:
            ends = (self.links[member.machine.name], self.links[target.machine.name])
            rate = min(self.pools[0].spec.bandwidth, pool.spec.bandwidth)
            way = Way(ends, given.latency, given.bytes_per_token, given.layers, rate)
            self.sent += float(self.requests.prompt[request]) * given.bytes_per_token
        if isinstance(target, DecodeMember):
            # after the prefilling member has put its own books in order
            self.simulation.at(self.simulation.now, lambda: target.offer(request, member, way))
        self._grow(pool)

    def _landed(self, request: int, now: float) -> None:
        if self.hand_over.first_token_late:
            self.first_token[request] = now

    # --- autoscaling ---

    def _grow(self, pool: _Pool) -> None:
        """Start a replica if those that are there, or starting, have more requests each than they should."""
        scale = pool.spec.autoscale
        if scale is None:
            return
        there = sum(since is not None for since in pool.since)
        load = sum(member.outstanding for replica in pool.replicas for member in replica)
        if load <= scale.target_requests * there or there == len(pool.replicas):
            return
        replica = pool.since.index(None)
        pool.since[replica] = self.simulation.now

        def begin() -> None:
            pool.on[replica] = True
            self._rest(pool, replica)

        self.simulation.at(self.simulation.now + float(scale.start_delay), begin)

    def _rest(self, pool: _Pool, replica: int) -> None:
        """Stop a replica that has nothing to do, later, if that is still so."""
        scale = pool.spec.autoscale
        if scale is None or any(member.outstanding for member in pool.replicas[replica]):
            return
        now = self.simulation.now
        pool.idle_since[replica] = now

        def stop() -> None:
            since = pool.since[replica]
            busy = any(member.outstanding for member in pool.replicas[replica])
            if busy or pool.idle_since[replica] != now or not pool.on[replica] or since is None:
                return
            if sum(pool.on) > scale.minimum:
                pool.on[replica], pool.since[replica] = False, None
                pool.up[replica].append((since, self.simulation.now))

        self.simulation.at(now + float(scale.idle_time), stop)

    # --- what is left ---

    def _collect(self, timeline: Timeline) -> FleetServed:
        finish = float(self.end.max())
        members = {m.machine.name: m for pool in self.pools for replica in pool.replicas for m in replica}
        arrival = self.arrivals.at
        order = np.argsort(arrival, kind="stable")
        up = {}
        waited = np.full(len(arrival), np.nan)
        for pool in self.pools:
            for replica, (groups, since) in enumerate(zip(pool.replicas, pool.since, strict=True)):
                spans = [(a, min(b, finish)) for a, b in pool.up[replica] if a < finish]
                up[groups[0].machine.name] = [*spans, (since, finish)] if since is not None else spans
        for member in members.values():
            if isinstance(member, DecodeMember):
                waited = np.where(np.isnan(waited), member.waited, waited)
        return FleetServed(
            self._merged(list(members.values()), timeline, order),
            members,
            self.pool_of,
            up,
            waited[order],
            self.sent,
        )

    def _merged(self, members: list[Member], timeline: Timeline, order: Integers) -> Served:
        requests = replace(self.requests, arrival=self.arrivals.at).of(order)
        size = max(np.size(m.prefill_account) for m in members)
        size = max(size, *(np.size(m.decode_account) for m in members))
        prefill, decode = np.zeros(size), np.zeros(size)
        moved: dict[str, float] = {}
        for member in members:
            prefill = prefill + member.prefill_account
            decode = decode + member.decode_account
            for way, amount in member.copies.moved.items():
                moved[way] = moved.get(way, 0.0) + amount
        log = members[0].log.columns()
        for member in members[1:]:
            other = member.log.columns()
            for name, column in vars(log).items():
                setattr(log, name, np.concatenate((column, getattr(other, name))))
        by_time = np.argsort(log.start, kind="stable")
        for name, column in vars(log).items():
            setattr(log, name, column[by_time])
        return Served(
            requests, self.admitted[order], self.first_token[order], self.end[order], sum(m.preemptions for m in members),
            prefill, decode, log, timeline, self.found[order], moved, sum(m.copies.stall for m in members),
            sum(m.waiting_for_pages for m in members),
        )  # fmt: skip


def _names(spec: PoolPlan) -> list[str]:
    """Names of a pool's members, replica by replica."""
    if spec.groups == 1:
        return [f"{spec.name} {replica + 1}" for replica in range(spec.replicas)]
    return [
        f"{spec.name} {replica + 1}.{group + 1}"
        for replica in range(spec.replicas)
        for group in range(spec.groups)
    ]
