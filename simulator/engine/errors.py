"""What can go wrong in the engine; every message names the task, the resource and the amount."""


class EngineError(ValueError):
    """Base of all errors of the engine."""


class ProgramError(EngineError):
    """A program, or a request to a running simulation, that makes no sense."""


class MemoryFullError(EngineError):
    """A dynamic buffer does not fit a memory whose policy is ``on_full="block"``."""


class DeadlockError(EngineError):
    """A task waits for memory that nothing can ever free.

    Attributes
    ----------
    task : int or None
        The first waiting task; None if it is a request for a buffer, or if the buffers resident from time 0 do not fit.
    memory : str
        Name of the memory that is full.
    short_bytes : float
        Bytes missing [B].
    """

    def __init__(self, message: str, *, task: int | None, memory: str, short_bytes: float) -> None:
        super().__init__(message)
        self.task = task
        self.memory = memory
        self.short_bytes = short_bytes
