"""Lower rounds to a Program: drafts one after the other, then the target layer by layer, read ahead of its computation."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.offload.draft_verify.plan import Part, Plan
from simulator.offload.draft_verify.rounds import Round
from simulator.offload.emit import Emitter
from simulator.offload.tiers import GPU, NVME
from simulator.offload.weights import LayerWeights

READ = "flash reads"


def lower(plan: Plan, rounds: Sequence[Round]) -> Emitter:
    """Return the program of some rounds; without a draft each is one pass of the target."""
    return _Rounds(plan).emitted(rounds)


class _Rounds:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.emit = Emitter(plan.name, plan.tiers, channels=(plan.flash.channel, plan.worker.channel))

    def emitted(self, rounds: Sequence[Round]) -> Emitter:
        """Emit everything."""
        plan, emit = self.plan, self.emit
        self._resident()
        before: list[int] = []
        for number, each in enumerate(rounds):
            emit.number = number
            for turn in range(each.drafted):
                before = [self._draft(f"round {number}, draft {turn}", before)]
            before = [self._verify(each, f"round {number}", before)]
        emit.keep(NVME, plan.target.size, "weights", "the target")
        return emit

    def _resident(self) -> None:
        plan, emit = self.plan, self.emit
        for part, name in ((plan.target, "target"), (plan.draft, "draft")):
            if part is not None:
                held = part.size * (1.0 - plan.away if part is plan.target else 1.0)
                emit.keep(GPU, held, f"{name} weights", f"{name} weights")
                emit.keep(GPU, part.cache, "KV cache", f"KV cache of the {name}")
        if plan.away:
            largest = max(layer.used for layer in plan.target.weights.layers)
            emit.keep(GPU, 2.0 * largest * plan.target.width * plan.away, "buffers", "layers read")

    def _draft(self, name: str, after: list[int]) -> int:
        assert self.plan.draft is not None
        size, flops = self.plan.draft.streamed()
        return self.plan.worker.work(self.emit, size, flops, after, "draft", name)

    def _verify(self, each: Round, name: str, before: list[int]) -> int:
        """One pass of the target over the round's candidates; the draft goes on between its layers."""
        plan = self.plan
        target = plan.target
        layers = target.weights.layers
        slower = plan.strategy.interference.loading if each.ahead else 1.0
        computed: list[list[int]] = []
        left = each.ahead
        for position, layer in enumerate(layers):
            free = before
            if not plan.strategy.reading.overlap:
                free = computed[-1] if computed else before
            elif position > 1:
                free = computed[-2]
            read = self._read(layer.used * target.width, slower, free, f"{name}, layer {position}")
            due = round(each.ahead * (position + 1) / len(layers))
            while left > each.ahead - due:
                self._draft(f"{name}, ahead {each.ahead - left}", before)
                left -= 1
            waited = [*read, *(computed[-1] if computed else before)]
            computed.append(
                [self._layer(target, layer, each.candidates, f"{name}, layer {position}", waited)]
            )
        read = self._read(target.weights.head * target.width, slower, computed[-1], f"{name}, head")
        size = target.weights.head * target.width
        flops = 2.0 * target.weights.head * each.candidates
        return plan.worker.work(self.emit, size, flops, [*read, *computed[-1]], "verify", f"{name}, head")

    def _layer(self, target: Part, layer: LayerWeights, tokens: int, name: str, after: list[int]) -> int:
        size = layer.used * target.width + target.context * layer.kv_width * target.kv_bytes
        return self.plan.worker.work(self.emit, size, 2.0 * layer.used * tokens, after, "verify", name)

    def _read(self, size: float, slower: float, after: list[int], name: str) -> list[int]:
        plan = self.plan
        size *= plan.away
        if not size:
            return after
        flash = plan.flash
        return [
            self.emit.transfer(
                flash.following, size, plan.rate / slower, READ, after, READ, f"{name}: read", "storage"
            )
        ]
