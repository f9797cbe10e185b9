"""When a scheduler looks who has come, and how long it lets prompts wait for more of them.

Servers that keep the host out of short decode steps look into their socket once in several of them (SGLang's
``scheduler_recv_interval``; sgl-project/sglang, srt/managers/scheduler_recv_skipper.py: a step of decodes counts one, one of
prompts counts a thousand), and servers that keep prompts from slowing decodes down collect them first (TensorRT-LLM's
``batch_wait_timeout_iters`` and ``batch_wait_max_tokens_ratio``; NVIDIA/TensorRT-LLM, _torch/pyexecutor/py_executor.py).
"""

from __future__ import annotations

from simulator.serving.policies import Policy
from simulator.serving.workload import Floats


class Reading:
    """Looks at those who have come after every ``receive_interval`` decode steps, after each prompt, and whenever idle.

    Parameters
    ----------
    policy : Policy
        Interval, and whether an iteration is put together while the one before it runs.

    Attributes
    ----------
    until : float
        Who had come by then is known [s].
    """

    def __init__(self, policy: Policy) -> None:
        self._interval, self._ahead = policy.receive_interval, policy.ahead
        self._since = 0
        self.until = 0.0

    def decoded(self, start: float, ends: Floats, count: int) -> None:
        """Decode steps have run from ``start`` on, each to its end after that [s]."""
        since = self._since + count
        looks = since // self._interval
        if looks:
            step = looks * self._interval - self._since
            begun = start + (float(ends[step - 2]) if step > 1 else 0.0)
            self.until = begun if self._ahead else start + float(ends[step - 1])
        self._since = since - looks * self._interval

    def prompted(self, start: float, end: float) -> None:
        """An iteration with prompts has run."""
        self.until = start if self._ahead else end
        self._since = 0

    def steps(self, steps: int) -> int:
        """Return after how many steps the first look is that comes after no fewer than ``steps``."""
        return -(-(self._since + steps) // self._interval) * self._interval - self._since


class Collecting:
    """Counts the decode steps that prompts wait for more prompts.

    Parameters
    ----------
    policy : Policy
        Steps that they wait at most, and the share of the token budget that ends it.
    """

    def __init__(self, policy: Policy) -> None:
        self._most, self._enough = policy.wait_steps, policy.wait_share * policy.max_tokens
        self._waited = 0
        self.waits = False

    def look(self, tokens: int) -> bool:
        """Whether prompts wait that would make an iteration of so many tokens, beside decodes."""
        self.waits = self._waited < self._most and tokens < self._enough
        if not self.waits:
            self._waited = 0
        return self.waits

    def decoded(self, count: int) -> None:
        """Decode steps have run."""
        self._waited += count * self.waits
        self.waits = False

    @property
    def left(self) -> int:
        """Steps after which the wait is over."""
        return self._most - self._waited
