"""Which experts tokens are routed to: seeded draws by popularity and with reuse, or a recorded trace."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator.engine import zipf_weights
from simulator.specs import MemroofError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
COLUMNS = ("token", "layer", "expert")
TOKENS, SEQUENCES = 4096, 256
"""Tokens of a prompt, and sequences of a batch, whose routing is drawn; what is more is routed alike."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Routing of one batch of requests.

    Attributes
    ----------
    prompt : array of int, shape (layers, experts)
        Tokens that the prefill sends to each expert.
    steps : array of int, shape (steps, layers, experts)
        Tokens that each decode step sends to it.
    """

    prompt: Integers
    steps: Integers


class Router:
    """Draws the experts of tokens, layer by layer, one batch of requests after another.

    A token keeps each expert of the token before it with probability ``reuse``; the others are drawn without repetition by
    weights of Zipf's law (successive sampling by Gumbel keys: Kool et al. 2019, *Stochastic beams and where to find them*,
    section 2.2). Each layer has an order of popularity of its own. Of independent draws the share that repeats is k/E where
    experts are equally popular, so that a token repeats an expert of the one before with about r + (1 - r)·k/E.

    Parameters
    ----------
    layers, experts, per_token : int
        MoE layers, routed experts of each, and those that a token goes to.
    skew, reuse : float
        Exponent of Zipf's law; probability of keeping an expert.
    seed : int
        Of all draws.
    """

    def __init__(
        self, layers: int, experts: int, per_token: int, *, skew: float, reuse: float, seed: int
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._per_token, self._reuse = per_token, reuse
        ranks = np.argsort(self._random.random((layers, experts)), axis=1)
        self.popularity: Floats = zipf_weights(experts, skew)[ranks]
        """Weight of each expert, shape (layers, experts)."""

    def draw(self, prompt: Sequence[int], decoding: Sequence[bool], steps: int, batch: int) -> Drawn:
        """Draw one batch of requests.

        Parameters
        ----------
        prompt : sequence of int
            Tokens of a sequence that each layer sees in the prefill.
        decoding : sequence of bool
            Whether the layer takes part in decode steps (encoder layers don't).
        steps : int
            Decode steps.
        batch : int
            Sequences, which are drawn independently of one another.
        """
        first = np.zeros(self.popularity.shape, np.int64)
        later = np.zeros((steps, *self.popularity.shape), np.int64)
        kinds = list(zip(prompt, decoding, strict=True))
        for kind in dict.fromkeys(kinds):
            layers = np.flatnonzero([other == kind for other in kinds])
            length, goes_on = min(kind[0], TOKENS), kind[1]
            drawn = min(batch, SEQUENCES)
            for token, counts in enumerate(self._tokens(layers, length + (steps if goes_on else 0), drawn)):
                if token < length:
                    first[layers] += counts
                else:
                    later[token - length, layers] = _scaled(counts, batch / drawn)
            first[layers] = _scaled(first[layers], batch * kind[0] / max(drawn * length, 1))
        return Drawn(first, later)

    def _tokens(self, layers: Integers, length: int, batch: int) -> Iterator[Integers]:
        """Yield for one token after another how many sequences send it to each expert; shape (layers, experts)."""
        weights = np.log(self.popularity[layers])[:, None, :]
        shape = (len(layers), batch, weights.shape[-1])
        chosen = np.zeros(shape, bool)
        for _ in range(length):
            keys = weights + self._random.gumbel(size=shape)
            if self._reuse:
                keys[chosen & (self._random.random(shape) < self._reuse)] = np.inf
            chosen = np.zeros(shape, bool)
            first = np.argpartition(-keys, self._per_token - 1, axis=-1)[..., : self._per_token]
            np.put_along_axis(chosen, first, True, axis=-1)
            yield chosen.sum(axis=1)


class Replay:
    """Recorded routing, replayed token after token; from the beginning again where it ends.

    Parameters
    ----------
    file : str
        CSV with columns token, layer (MoE layers alone, from 0) and expert.
    layers, experts : int
        Of the model.

    Raises
    ------
    MemroofError
        If the file cannot be read, lacks a column or a layer, or names an expert that the model lacks.
    """

    def __init__(self, file: str, layers: int, experts: int) -> None:
        rows = _read(file)
        if not len(rows):
            raise MemroofError(f"{file}: no routing in it")
        for column, name, most in ((1, "layer", layers), (2, "expert", experts)):
            if rows[:, column].max() >= most or rows[:, column].min() < 0:
                found = rows[:, column].max() if rows[:, column].max() >= most else rows[:, column].min()
                raise MemroofError(f"{file}: {name} {found}, but the model has {name}s 0 to {most - 1}")
        tokens = np.unique(rows[:, 0], return_inverse=True)[1].reshape(-1)
        self._chosen = np.zeros((int(tokens.max()) + 1, layers, experts), np.int64)
        self._chosen[tokens, rows[:, 1], rows[:, 2]] = 1
        silent = np.flatnonzero(~self._chosen.any(axis=(0, 2)))
        if len(silent):
            raise MemroofError(f"{file}: no expert of MoE layer {silent[0]}; the model has {layers} of them")
        self._next = 0
        self.popularity: Floats = self._chosen.sum(axis=0) / self._chosen.sum(axis=(0, 2))[:, None]

    def draw(self, prompt: Sequence[int], decoding: Sequence[bool], steps: int, batch: int) -> Drawn:
        """Return the next tokens of the trace; see :meth:`Router.draw`."""
        if batch != 1 or len(set(prompt)) > 1:
            raise MemroofError(
                "a recorded routing trace is of one sequence of a decoder: use workload.batch 1"
            )
        length = prompt[0] + steps
        taken = np.take(self._chosen, np.arange(self._next, self._next + length), axis=0, mode="wrap")
        self._next = (self._next + length) % len(self._chosen)
        return Drawn(taken[: prompt[0]].sum(axis=0), taken[prompt[0] :])


def _scaled(counts: Integers, factor: float) -> Integers:
    return counts if factor == 1.0 else np.rint(counts * factor).astype(np.int64)


def _read(file: str) -> Integers:
    try:
        with Path(file).open(newline="") as opened:
            reader = csv.DictReader(opened)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise MemroofError(f"{file}: no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
            rows = [[int(row[name]) for name in COLUMNS] for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise MemroofError(f"{file}: cannot be read: {error}") from error
    except (TypeError, ValueError) as error:
        raise MemroofError(f"{file}: token, layer and expert are whole numbers: {error}") from error
    return np.array(rows, np.int64).reshape(-1, len(COLUMNS))
