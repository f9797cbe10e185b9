"""What tasks do: copies in the queues of each GPU, computation, updates, and the memory that they hold meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.offload.columns import BOTTLENECKS, Rows
from simulator.offload.emit import COPYING, Emitter
from simulator.offload.task_packs.layers import Layers, PassTable
from simulator.offload.task_packs.server import Server
from simulator.offload.task_packs.tasks import BACKWARD, Task, all_reduce_time
from simulator.offload.tiers import DRAM, GPU


class Moves:
    """Adds to a program and counts what is moved.

    Each GPU has queues for copies in and out of DRAM, for copies from its peers, for computation, and for its process on
    the CPU (messages, updates).

    Parameters
    ----------
    name : str
        Of the program.
    layers : Layers
        What is computed and moved.
    server : Server
        GPUs and ways.
    """

    def __init__(self, name: str, layers: Layers, server: Server) -> None:
        self.layers, self.server, self.twins = layers, server, server.twins
        self.emit = Emitter(name, server.ranks, channels=server.channels)
        self.swapped: dict[str, float] = {}
        """Bytes between the GPUs and DRAM by what they are."""
        self.peer_bytes = self.message_bytes = 0.0
        self.computing = [0.0] * len(server.ranks)
        """Seconds of computation of each GPU."""
        self._sent: dict[int, int] = {}
        for label, sizes in (
            ("weights", layers.stored), ("gradients", layers.gradients), ("optimizer states", layers.state)
        ):  # fmt: skip
            self.emit.keep(DRAM, float(sizes.sum()), label, f"{label} of all layers")

    # --- copies ------------------------------------------------------------------------------------------------------

    def swap(
        self,
        source: str,
        target: str,
        size: float,
        what: str,
        after: Sequence[int],
        task: Task,
        name: str = "",
    ) -> int:
        """Copy between DRAM and a task's GPU, in the queue of that direction."""
        self.swapped[what] = self.swapped.get(what, 0.0) + size
        label = f"{name or what} of {task.label}"
        return self.emit.copy(source, target, size, after, what, label, rank=task.rank)

    def fetch(self, sent: int, task: Task, size: float, after: Sequence[int], name: str, what: str) -> int:
        """Bring a tensor back that has lain in DRAM since a copy was sent there."""
        brought = self.swap(DRAM, GPU, size, what, [*after, sent], task, name)
        label = f"{name} of {task.label}"
        self.emit.keep(DRAM, size * self.twins, what, label, at=sent, until=[brought], rank=task.rank)
        return brought

    def peer(self, source: int, task: Task, size: float, after: Sequence[int], name: str) -> int:
        """Copy from another GPU to a task's; the sender's copies wait for one another as the receiver's do."""
        self.peer_bytes += size
        channel = self.server.peers[source, task.rank]
        before = [self._sent[source]] if source in self._sent else []
        label, queue = f"{name} of {task.label} from gpu{source}", f"peers to gpu{task.rank}"
        copied = self.emit.transfer(
            channel, size, channel.rate, queue, [*after, *before], "peer copies", label, "host link"
        )
        self._sent[source] = copied
        return copied

    def pass_on(self, saved: int, task: Task, target: Task, layer: int, j: int) -> int:
        """Hand a layer's input to the process of the GPU that needs it; a process has its own already."""
        if target.rank == task.rank:
            return saved
        size = float(self.layers.at(target.micro_batch).inputs[layer])
        self.message_bytes += size
        channel, name = self.server.messages, f"message of layer {layer}, {j}"
        # the DRAM is read and written
        return self.emit.transfer(
            channel, 2.0 * size, channel.rate, self._cpu(task), [saved], "messages", name, "host"
        )

    # --- work --------------------------------------------------------------------------------------------------------

    def compute(
        self, task: Task, low: int, high: int, i: int, after: Sequence[int], tag: str, rows: Rows
    ) -> int:
        """Compute some of a task's layers for its i-th micro-batch."""
        row = rows[low:high].sum(axis=0)
        time = float(row[: len(BOTTLENECKS)].sum())
        self.computing[task.rank] += time
        name = f"{tag} of layers {low}-{high - 1}, {i}"
        return self.emit.work(self.emit.gpus[task.rank], time, row / (time or 1.0), after, tag, name)

    def reduce(self, task: Task, size: float, after: Sequence[int]) -> int:
        """Sum a pack's gradients over equal GPUs while they wait."""
        seconds = all_reduce_time(size, self.twins, self.server.peer_rate)
        self.peer_bytes += 2.0 * (self.twins - 1) / self.twins * size
        stream, name = self.emit.gpus[task.rank], f"all-reduce of {task.label}"
        return self.emit.work(stream, seconds, COPYING["host link"], after, "all-reduce", name)

    def drop(self, task: Task, seconds: float, after: Sequence[int]) -> int:
        """Drop a task's tensors while its GPU waits."""
        stream, name = self.emit.gpus[task.rank], f"tensors of {task.label} dropped"
        return self.emit.work(stream, seconds, COPYING["host"], after, "deletion", name)

    def update(self, task: Task, after: Sequence[int]) -> None:
        """Run the optimizer's step of a pack on the CPU: measured seconds, or traffic on the DRAM that copies share.

        The processes of equal GPUs share the traffic; measured seconds are those of one of them.
        """
        emit, queue, name = self.emit, self._cpu(task), f"update of {task.label}"
        traffic = float(self.layers.update_traffic[task.layers].sum()) / self.twins
        seconds = float(self.layers.update[task.layers].sum())
        tiers = emit.ranks[task.rank]
        if traffic and tiers.host is not None:
            channel = tiers.host.channel
            emit.transfer(channel, traffic, channel.rate, queue, after, "update", name, "host")
            return
        seconds += traffic / tiers.channels[GPU, DRAM].rate
        emit.work(emit.stream(queue), seconds, COPYING["host"], after, "update", name)

    def _cpu(self, task: Task) -> str:
        return f"cpu of gpu{self.emit.ranks[task.rank].rank}"

    # --- memory ------------------------------------------------------------------------------------------------------

    def hold(self, task: Task, size: float, category: str, name: str, at: int, until: Sequence[int]) -> None:
        """Hold bytes of a task's GPU."""
        self.emit.keep(GPU, size, category, f"{name} of {task.label}", at=at, until=until, rank=task.rank)

    def hold_working(self, task: Task, table: PassTable, start: int, end: int) -> None:
        """Hold what a micro-batch needs of a pack's memory beside weights, gradients and input."""
        whole = float(table.pack_memory(task.which, np.array(task.pack))[0])
        apart = float(self.layers.weights[task.layers].sum() + table.inputs[task.pack[0]])
        if task.which == BACKWARD:
            apart += float(self.layers.gradients[task.layers].sum())
        self.hold(task, max(0.0, whole - apart), "working memory", "working memory", start, [end])
