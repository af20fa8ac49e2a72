"""Coordinate descent on measured losses: move one block's score at a time, and keep what helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.proposer import CHEAP_REPEATS, History
from proxyprune.searching.round import Round
from proxyprune.support.seeds import derived_seed


@dataclass(frozen=True)
class _Turn:
    """The next move: which block (by place in its cycle's order), which way, how far."""

    cycle: int
    place: int
    reverse: bool
    step: float
    improved: bool  # anything in this cycle

    def after(self, better: bool, blocks: int, shrink: float) -> _Turn:
        """Repeat a move that helped; try one that did not help the other way, then turn to the next block."""
        if better:
            return _Turn(self.cycle, self.place, self.reverse, self.step, improved=True)
        if not self.reverse:
            return _Turn(self.cycle, self.place, True, self.step, self.improved)
        if self.place + 1 < blocks:
            return _Turn(self.cycle, self.place + 1, False, self.step, self.improved)
        return _Turn(self.cycle + 1, 0, False, self.step if self.improved else self.step * shrink, improved=False)


@dataclass(frozen=True)
class CoordinateProposer:
    """Moves the score of one block up or down from the best ranking so far; steps shrink after a cycle in which nothing helped.

    Blocks take turns in an order drawn for each cycle, those with more MACs sooner. A move that helps is made again at once.

    Args:
        step: First move, in units of a score.
        shrink: Factor for the step after a cycle without improvement.
    """

    step: float = 0.4
    shrink: float = 0.5
    repeats: int = field(default=CHEAP_REPEATS, init=False)

    @property
    def name(self) -> str:
        """Name with settings."""
        return f"coordinate(step={self.step:g}, shrink={self.shrink:g})"

    def propose(self, history: History) -> Ranking:
        """Replay all turns, then make the next move."""
        blocks = history.movable
        if not blocks:
            return history.ranking(history.start.scores, self.name, "No block's score can change the plan.")
        turn = _Turn(0, 0, reverse=False, step=self.step, improved=False)
        for entry in history.rounds[1:]:
            turn = turn.after(_better(entry), len(blocks), self.shrink)
        block, sign = self._move(history, blocks, turn)
        scores = dict(history.best.ranking.scores)
        moved = min(1.0, max(0.0, scores[block] + sign * turn.step))
        note = f"Round {history.best.index} with '{block}' at {moved:.3f} instead of {scores[block]:.3f}."
        return history.ranking({**scores, block: moved}, self.name, note)

    def _move(self, history: History, blocks: Sequence[str], turn: _Turn) -> tuple[str, float]:
        generator = np.random.default_rng(derived_seed(history.context.seed, "coordinate", turn.cycle))
        macs = np.array([history.graph.block_by_id[block].macs for block in blocks], dtype=np.float64)
        # Gumbel keys: a draw without replacement with the MACs as weights.
        keys = np.log(macs + 1.0) + generator.gumbel(size=len(blocks))
        signs = generator.choice([-1.0, 1.0], size=len(blocks))
        place = int(np.argsort(-keys, kind="stable")[turn.place])
        return blocks[place], float(-signs[place] if turn.reverse else signs[place])


def _better(entry: Round) -> bool:
    return entry.verdict == "better"
