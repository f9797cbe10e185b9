"""What the prompts of a workload have in common, as a tree in arrays: a node is a piece of text after all that is before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Texts of requests as paths in a tree; two requests share what their paths share.

    Attributes
    ----------
    parent : array, shape (nodes,)
        The node before; -1 at a root.
    end : array, shape (nodes,)
        Tokens from the root to the node's end.
    leaf : array, shape (requests,)
        The node that ends with a request's prompt and answer; nodes of other requests may follow it.
    """

    parent: Integers
    end: Integers
    leaf: Integers

    def of(self, requests: Integers) -> Prefixes:
        """Return the texts of some requests."""
        return replace(self, leaf=self.leaf[requests])

    @property
    def start(self) -> Integers:
        """Tokens before each node."""
        return np.where(self.parent >= 0, self.end[self.parent], 0)


def own_texts(prompt: Integers, output: Integers) -> Prefixes:
    """Return requests that have nothing in common."""
    count = len(prompt)
    return Prefixes(np.full(count, -1), prompt + output, np.arange(count))


def grouped_texts(group: Integers, lengths: Integers, prompt: Integers, output: Integers) -> Prefixes:
    """Return requests that begin with the text of their group; -1: with one of their own.

    Parameters
    ----------
    group : array, shape (requests,)
        Index into ``lengths``.
    lengths : array, shape (groups,)
        Tokens of each text [tokens].
    prompt, output : array, shape (requests,)
        Whole prompts, the group's text in them, and answers [tokens].
    """
    groups = len(lengths)
    parent = np.concatenate((np.full(groups, -1), group))
    end = np.concatenate((lengths, prompt + output))
    return Prefixes(parent, end, groups + np.arange(len(prompt)))


def chained_texts(
    blocks: Iterable[Sequence[int]], block_tokens: int, prompt: Integers, output: Integers
) -> Prefixes:
    """Return requests whose prompts are given as identifiers of blocks.

    Equal identifiers after equal ones are the same text. The last block of a prompt may be part of one; tokens beyond the
    identified blocks are the request's own.

    Parameters
    ----------
    blocks : iterable of sequences of int
        Identifiers of each request's blocks, from the beginning of its prompt.
    block_tokens : int
        Tokens of a whole block.
    prompt, output : array, shape (requests,)
        Tokens of each request.
    """
    known: dict[tuple[int, int, int], int] = {}
    parent: list[int] = []
    end: list[int] = []
    last: list[int] = []
    for identifiers, tokens in zip(blocks, prompt.tolist(), strict=True):
        node = -1
        for index, identifier in enumerate(identifiers):
            until = min((index + 1) * block_tokens, tokens)
            key = (node, identifier, until)
            node = known.setdefault(key, len(parent))
            if node == len(parent):
                parent.append(key[0])
                end.append(until)
            if until == tokens:
                break
        last.append(node)
    leaf = len(parent) + np.arange(len(prompt))
    return Prefixes(
        np.array(parent + last, np.int64), np.concatenate((np.array(end, np.int64), prompt + output)), leaf
    )
