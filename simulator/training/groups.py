"""Which ranks communicate with which: the groups of each kind of parallelism and what they span on the hardware."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph import Axis
from simulator.specs import Hardware, Span, TrainingStrategy


@dataclass(frozen=True, slots=True)
class Groups:
    """Degrees of parallelism and the strides of their groups in rank order.

    Tensor-parallel ranks are neighbours, then come context-parallel ones; then, by the rank order, replicas (as in
    Megatron-LM) or pipeline stages (as in Llama 3, section 3.3.2). Expert-parallel groups lie in the ranks of tensor,
    context and data parallelism, each expert cut over ``expert_tensor`` neighbours.
    """

    tensor: int
    context: int
    pipeline: int
    data: int
    expert: int
    expert_tensor: int
    shard: int
    """Ranks that states are cut over under ZeRO; replicas of these groups reduce between them."""
    stages_inside: bool = False
    """Whether stages are nearer than replicas in rank order."""

    @classmethod
    def of(cls, strategy: TrainingStrategy, hardware: Hardware) -> Groups:
        """Fill in what a strategy leaves open; what does not fit is for the rules to say."""
        tensor, context = strategy.tensor_parallel, strategy.context_parallel
        stages = strategy.pipeline_parallel
        data = strategy.data_parallel or max(1, hardware.size // (tensor * context * stages))
        return cls(
            tensor, context, stages, data, strategy.expert_parallel, strategy.expert_tensor_parallel or tensor,
            strategy.shard_group or data * context, strategy.rank_order == "tp-cp-pp-dp",
        )  # fmt: skip

    @property
    def ranks(self) -> int:
        """GPUs in use."""
        return self.tensor * self.context * self.pipeline * self.data

    @property
    def replicas(self) -> int:
        """Ranks that hold the same dense parameters: data- and context-parallel ones."""
        return self.data * self.context

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same experts."""
        return max(1, self.tensor * self.replicas // (self.expert * self.expert_tensor))

    @property
    def expert_shard(self) -> int:
        """Ranks that the states of experts are cut over."""
        return max(
            1, min(self.expert_replicas, self.shard * self.tensor // (self.expert * self.expert_tensor))
        )

    @property
    def stage_stride(self) -> int:
        """Ranks from a stage to the next."""
        return self.tensor * self.context * (1 if self.stages_inside else self.data)

    def spans(self, hardware: Hardware) -> dict[Axis, Span]:
        """Return what the groups of each axis span: of operators (tensor, context, expert) and of gradients (data)."""
        return {
            "tensor": hardware.span(self.tensor),
            "context": hardware.span(self.context, self.tensor),
            "expert": self._across(hardware, self.expert, self.expert_tensor),
            "expert-tensor": hardware.span(self.expert_tensor),
            "data": self.dense(hardware),
        }

    def dense(self, hardware: Hardware) -> Span:
        """Return what the ranks span that reduce the gradients of dense parameters."""
        return self._across(hardware, self.replicas, self.tensor)

    def shards(self, hardware: Hardware) -> tuple[Span, Span]:
        """Return the spans of a group that dense states are cut over, and of the replicas of such groups."""
        outer = self.replicas // self.shard
        inside = self._across(hardware, self.shard, self.tensor)
        if outer == 1:
            return inside, hardware.span(1)
        return inside, hardware.span(outer, self._stride(self.tensor * self.shard))

    def expert_shards(self, hardware: Hardware) -> tuple[Span, Span]:
        """Return the same two spans for the states of experts."""
        stride, shard = self.expert * self.expert_tensor, self.expert_shard
        outer = self.expert_replicas // shard
        inside = self._across(hardware, shard, stride)
        if outer == 1:
            return inside, hardware.span(1)
        return inside, hardware.span(outer, self._stride(stride * shard))

    def boundary(self, hardware: Hardware, sender: int, receiver: int) -> Span:
        """Return what a message from one stage to another crosses: the node's fabric or the network."""
        return hardware.pair(sender * self.stage_stride, receiver * self.stage_stride)

    def _stride(self, ranks: int) -> int:
        """Distance of ranks that are ``ranks`` apart among those of one stage."""
        inner = self.tensor * self.context
        if not self.stages_inside or ranks < inner:
            return ranks
        return ranks * self.pipeline

    def _across(self, hardware: Hardware, size: int, stride: int) -> Span:
        """Return the span of neighbours of one stage; with stages between replicas it has two parts."""
        inner = self.tensor * self.context
        near = max(1, inner // stride)
        if not self.stages_inside or size <= near:
            return hardware.span(size, stride)
        far = hardware.span(size // near, inner * self.pipeline)
        if near == 1:
            return hardware.span(size, self._stride(stride)) if stride >= inner else far
        return Span((*hardware.span(near, stride).tiers, *far.tiers))
