"""Room in memories while a program runs: who may start, who waits, who is let in when room is freed."""

from __future__ import annotations

from collections import deque

from simulator.engine.errors import DeadlockError, MemoryFullError
from simulator.engine.program import Memory, Program

# Adding and subtracting sizes that are no whole numbers may leave this part of the capacity behind.
_ROUNDING = 1e-9


class Admission:
    """Bytes in use by memory, and the queues of the tasks that wait for room.

    A task starts when its buffers fit in every blocking memory it claims and nobody waits there before it.
    All queues are in order of arrival, so the task that has waited longest is the first in each of its own.
    A client that asks for room waits like a task, under the negative number of its ticket.

    Parameters
    ----------
    program : Program
        Its allocations.
    track_all : bool
        Follow also the memories that only report; needed only if someone looks at the state while it runs.
    """

    def __init__(self, program: Program, *, track_all: bool = False) -> None:
        self.memories = {
            handle: resource
            for handle, resource in enumerate(program.resources)
            if isinstance(resource, Memory)
        }
        self.used = dict.fromkeys(self.memories, 0.0)
        self.claims: dict[int, list[int]] = {}  # allocations made at the start of a task
        self.releases: dict[int, list[int]] = {}  # allocations that outlive the end of a task
        self._program = program
        self._queues: dict[int, deque[int]] = {
            handle: deque() for handle, memory in self.memories.items() if memory.on_full == "block"
        }
        self._holders: dict[int, int] = {}  # allocation: how many of the tasks that hold it have not ended
        self._resident: set[int] = set()
        self._needs: dict[int, dict[int, float]] = {}  # waiting task or ticket: bytes by blocking memory
        self._tickets: dict[int, str] = {}  # names of the clients that wait
        self._n_tickets = 0
        table = program.allocations
        if len(table):
            tracked = self.memories if track_all else self._queues
            for index, handle in enumerate(table.memory):
                if handle in tracked:
                    self._follow(index, table.at[index])
            for index, task in zip(table.holder, table.holder_task, strict=True):
                if table.memory[index] in tracked:
                    self.releases.setdefault(task, []).append(index)
                    self._holders[index] = self._holders.get(index, 0) + 1
        self._check_initial()

    def admit(self, task: int) -> bool:
        """Take the room that a task claims, or let it wait; True if it may start."""
        need: dict[int, float] = {}
        for index in self.claims[task]:
            memory = self._program.allocations.memory[index]
            if memory in self._queues:
                need[memory] = need.get(memory, 0.0) + self._program.allocations.size[index]
        if any(self._queues[memory] or not self.fits(memory, size) for memory, size in need.items()):
            self._needs[task] = need
            for memory in need:
                self._queues[memory].append(task)
            return False
        self._occupy(task)
        return True

    def ask(self, memory: int, size: float, name: str) -> int | None:
        """Take room for a client, or let it wait and return its ticket."""
        if memory in self._queues and (self._queues[memory] or not self.fits(memory, size)):
            self._n_tickets += 1
            ticket = -self._n_tickets
            self._needs[ticket] = {memory: size}
            self._tickets[ticket] = name
            self._queues[memory].append(ticket)
            return ticket
        self.used[memory] += size
        return None

    def release(self, task: int) -> list[int]:
        """Free what the end of a task frees; return the waiting tasks that may now start, in order."""
        table = self._program.allocations
        freed = []
        for index in self.releases.pop(task):
            left = self._holders[index] = self._holders[index] - 1
            if not left and index in self._resident:
                self._resident.remove(index)
                self.used[table.memory[index]] -= table.size[index]
                freed.append(table.memory[index])
        return self.let_in(freed)

    def let_in(self, memories: list[int]) -> list[int]:
        """Admit waiting tasks of memories in which room was freed; return them in order."""
        admitted = []
        pending = [memory for memory in memories if memory in self._queues]
        for memory in pending:
            queue = self._queues[memory]
            while queue and self._is_next(queue[0]):
                task = queue[0]
                self._occupy(task)
                pending.extend(self._dequeue(task))
                admitted.append(task)
        return admitted

    def withdraw(self, task: int) -> list[int] | None:
        """Drop a waiting task; return those behind it that may now start, or None if it does not wait."""
        if task not in self._needs:
            return None
        return self.let_in(self._dequeue(task))

    def change(self, memory: int, size: float) -> None:
        """Add (or, if negative, take away) bytes of a dynamic buffer; MemoryFullError if they do not fit."""
        if size > 0.0 and memory in self._queues and not self.fits(memory, size):
            free = self.memories[memory].capacity - self.used[memory]
            raise MemoryFullError(
                f"memory {self.memories[memory].name!r} has {free:,.0f} bytes free, not {size:,.0f}"
            )
        self.used[memory] += size

    def fits(self, memory: int, size: float) -> bool:
        """Tell whether so many more bytes fit."""
        return self.used[memory] + size <= self.memories[memory].capacity * (1.0 + _ROUNDING)

    def waiting(self) -> bool:
        """Tell whether any task waits for room."""
        return bool(self._needs)

    def deadlock(self) -> DeadlockError:
        """Return the error that names the task which has waited longest."""
        task, need = next(iter(self._needs.items()))
        memory = next(memory for memory, size in need.items() if not self.fits(memory, size))
        name, capacity = self.memories[memory].name, self.memories[memory].capacity
        free = capacity - self.used[memory]
        who = f"task {task} {self._program.names[task]!r}" if task >= 0 else f"buffer {self._tickets[task]!r}"
        return DeadlockError(
            f"{who} needs {need[memory]:,.0f} bytes of memory {name!r},"
            f" which has {free:,.0f} of {capacity:,.0f} free: {need[memory] - free:,.0f} bytes short, and no"
            f" running task can free them ({len(self._needs) - 1} more tasks wait)",
            task=task if task >= 0 else None,
            memory=name,
            short_bytes=need[memory] - free,
        )

    def _follow(self, index: int, at: int) -> None:
        if at >= 0:
            self.claims.setdefault(at, []).append(index)
        else:
            self._resident.add(index)
            self.used[self._program.allocations.memory[index]] += self._program.allocations.size[index]

    def _check_initial(self) -> None:
        for memory in self._queues:
            if not self.fits(memory, 0.0):
                name, capacity = self.memories[memory].name, self.memories[memory].capacity
                short = self.used[memory] - capacity
                raise DeadlockError(
                    f"memory {name!r} holds {capacity:,.0f} bytes, and the buffers resident from time 0 need"
                    f" {self.used[memory]:,.0f}: {short:,.0f} bytes short",
                    task=None,
                    memory=name,
                    short_bytes=short,
                )

    def _is_next(self, task: int) -> bool:
        return all(
            self._queues[memory][0] == task and self.fits(memory, size)
            for memory, size in self._needs[task].items()
        )

    def _dequeue(self, task: int) -> list[int]:
        need = self._needs.pop(task)
        self._tickets.pop(task, None)
        for memory in need:
            self._queues[memory].remove(task)
        return list(need)

    def _occupy(self, task: int) -> None:
        if task < 0:
            for memory, size in self._needs[task].items():
                self.used[memory] += size
            return
        table = self._program.allocations
        for index in self.claims.pop(task):
            # What all its holders have already let go is never resident.
            if self._holders.get(index, 1):
                self._resident.add(index)
                self.used[table.memory[index]] += table.size[index]
