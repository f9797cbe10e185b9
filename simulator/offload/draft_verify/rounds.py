"""Rounds of drafting and verifying: tokens drafted and taken, drawn with a seed, and in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from simulator.specs.draft_verify_scenario import Agreement, Drafting

AT_ONCE = 4096
"""Random numbers that are drawn together."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Attributes
    ----------
    drafted : int
        Passes of the draft before the verification, those apart that an earlier round had left.
    candidates : int
        Tokens that are verified.
    taken : int
        Tokens that the round brings, the target's own among them.
    ahead : int
        Passes of the draft while the target is read.
    """

    drafted: int
    candidates: int
    taken: int
    ahead: int


@dataclass(slots=True)
class _Branch:
    tokens: int
    confidence: float
    right: bool
    """Whether all of its tokens are what the target would have said."""
    correct: int
    """Tokens before the first that is not."""
    turns: int = 0
    """Tokens that it was given in this round, for the fair rule."""
    trusted: int = 1
    """Tokens up to the one that brought its confidence below the threshold, that one too."""


def draw_rounds(
    agreement: Agreement, drafting: Drafting, tokens: int, ahead: int, generator: np.random.Generator
) -> list[Round]:
    """Draw rounds until so many tokens are there.

    Parameters
    ----------
    agreement, drafting : Agreement, Drafting
        How sure the draft is, and when it is verified.
    tokens : int
        Tokens to generate.
    ahead : int
        Passes of the draft that fit into the reading of the target.
    generator : numpy.random.Generator
        Whose numbers are drawn.

    Notes
    -----
    A token of confidence c is right with probability c. With a tree, the branch that is furthest behind its part of the
    tokens, by confidence, is given the next one, and a token's second choice opens a branch of its own. The round is over
    when the most confident branch falls below the threshold alpha. After it alpha is halved if that branch was right to
    the end; else it becomes the share of its tokens that were wrong (Xu et al. 2023, arXiv:2309.04255, LLMCad, sections
    3.2 and 3.3). While the target is read the draft prolongs the most confident branch; what it adds is of use if that
    branch was right and the target's own token is the first one added.
    """
    state = _Drafter(agreement, drafting, generator)
    found: list[Round] = []
    made = 0
    while made < tokens:
        found.append(state.round(ahead if drafting.continues else 0))
        made += found[-1].taken
    return found


class _Drafter:
    def __init__(self, agreement: Agreement, drafting: Drafting, generator: np.random.Generator) -> None:
        self.agreement, self.drafting, self.generator = agreement, drafting, generator
        self.threshold = drafting.threshold or 0.0
        self.left: list[tuple[float, bool]] = []
        """Confidence and truth of tokens that an earlier round drafted ahead."""
        self.drawn: Iterator[tuple[float, float]] = iter(())

    def round(self, ahead: int) -> Round:
        drafting = self.drafting
        branches = [_Branch(0, 1.0, True, 0)]
        for token in self.left:  # drafted for nothing, and verified for next to nothing
            self._extend(branches, branches[0], *token)
        drafted, given = 0, len(self.left)
        while given < (drafting.length or drafting.longest) and not self._done(branches, given):
            self._extend(branches, self._next(branches), *self._token())
            drafted, given = drafted + 1, given + 1
        deepest = max(branches, key=lambda branch: branch.tokens)
        correct = max(branch.correct for branch in branches)
        self._adapt(deepest)
        self.left = self._prolonged(ahead) if deepest.right and ahead else []
        return Round(drafted, given + len(branches) - 1, correct + 1, ahead)

    def _prolonged(self, ahead: int) -> list[tuple[float, bool]]:
        """Return what was drafted behind the target's own token, where that is the first of it."""
        first, *others = [self._token() for _ in range(ahead)]
        return others if first[1] else []

    def _done(self, branches: list[_Branch], given: int) -> bool:
        if self.drafting.length is not None:
            return False
        return given > 0 and max(branch.confidence for branch in branches) < self.threshold

    def _next(self, branches: list[_Branch]) -> _Branch:
        total = sum(branch.confidence for branch in branches)
        count = 1 + sum(branch.turns for branch in branches)
        return max(branches, key=lambda branch: count * branch.confidence / total - branch.turns)

    def _extend(self, branches: list[_Branch], branch: _Branch, confidence: float, right: bool) -> None:
        if self.drafting.tree:
            self._open(branches, branch, confidence, right)
        branch.tokens += 1
        branch.confidence *= confidence
        branch.right = branch.right and right
        branch.correct += branch.right
        branch.turns += 1
        if branch.confidence >= self.threshold:
            branch.trusted = branch.tokens + 1

    def _open(self, branches: list[_Branch], branch: _Branch, confidence: float, right: bool) -> None:
        """Let a token's second choice begin a branch, in place of the least likely one that has not grown if there are enough."""
        second = self.agreement.second
        chance = branch.confidence * (1.0 - confidence) * second
        rescued = branch.right and not right and self.generator.random() < second
        opened = _Branch(branch.tokens + 1, chance, rescued, branch.correct + rescued)
        if len(branches) < self.drafting.branches:
            branches.append(opened)
            return
        waiting = [other for other in branches if not other.turns and other is not branch]
        least = min(waiting, key=lambda other: other.confidence, default=None)
        if least is not None and least.confidence < chance:
            branches[branches.index(least)] = opened

    def _token(self) -> tuple[float, bool]:
        pair = next(self.drawn, None)
        if pair is None:
            agreement = self.agreement
            first = agreement.confidence * agreement.concentration
            confidence = self.generator.beta(first, agreement.concentration - first, AT_ONCE)
            self.drawn = iter(zip(confidence.tolist(), self.generator.random(AT_ONCE).tolist(), strict=True))
            pair = next(self.drawn)
        return pair[0], pair[1] < pair[0]

    def _adapt(self, deepest: _Branch) -> None:
        tokens = min(
            deepest.trusted, deepest.tokens
        )  # what came for nothing beyond the threshold says nothing about it
        if not self.drafting.adaptive or not tokens:
            return
        wrong = tokens - min(deepest.correct, tokens)
        self.threshold = wrong / tokens if wrong else self.threshold / 2.0


def expected_taken(confidence: float, length: int) -> float:
    """Return the tokens that a round of ``length`` drafted ones brings on average, the target's own among them.

    (1 - p^(n+1)) / (1 - p) (Leviathan et al. 2023, arXiv:2211.17192, equation 1).
    """
    return (1.0 - confidence ** (length + 1)) / (1.0 - confidence)


def threshold_length(confidence: float, threshold: float) -> int:
    """Return the tokens that are drafted until the product of equal confidences is below a threshold."""
    return max(1, math.floor(math.log(threshold) / math.log(confidence)) + 1)


def token_time(draft: float, verify: float, length: int, confidence: float) -> float:
    """Return the time of a token where rounds of ``length`` drafts and one verification take turns [s].

    (n t_draft + t_verify) / tokens taken.
    """
    return (length * draft + verify) / expected_taken(confidence, length)
