"""Evolution of block scores by CMA-ES, replayed from the history for every proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np

from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.proposer import CHEAP_REPEATS, History
from proxyprune.searching.round import Round
from proxyprune.support.extras import explained
from proxyprune.support.seeds import derived_seed


@dataclass(frozen=True)
class EvolutionProposer:
    """Covariance matrix adaptation (CMA-ES) of the block scores, starting at the one-shot ranking.

    Small populations, because a measurement is expensive. All randomness follows from the seed, and the library gets every earlier loss
    in the order in which it came, so the state is the same whether or not the search was interrupted.

    Args:
        sigma: First step size, in units of a score.
        population: Proposals per generation.

    Raises:
        MissingExtraError: If cmaes is not installed.

    Source:
        Hansen 2016, arXiv:1604.00772, as implemented by the package cmaes. Deviations: none.
    """

    sigma: float = 0.2
    population: int = 6
    repeats: int = field(default=CHEAP_REPEATS, init=False)

    def __post_init__(self) -> None:
        with explained("The proposer 'evolution'"):  # before anything is measured
            import_module("cmaes")

    @property
    def name(self) -> str:
        """Name with settings."""
        return f"evolution(sigma={self.sigma:g}, population={self.population})"

    def together(self, rounds: Sequence[Round]) -> int:
        """Return the individuals that are left of the generation: the next one needs all losses of this one."""
        return self.population - (len(rounds) - 1) % self.population

    def propose(self, history: History) -> Ranking:
        """Replay all generations, then take the next individual."""
        from cmaes import CMA

        blocks = history.movable
        mean = np.array([history.start.scores[block] for block in blocks], dtype=np.float64)
        if len(blocks) < 2:  # CMA-ES needs two dimensions
            blocks, mean = (*blocks, ""), np.append(mean, 0.5)
        optimiser = CMA(
            mean=mean,
            sigma=self.sigma,
            bounds=np.tile([0.0, 1.0], (len(blocks), 1)),
            seed=derived_seed(history.context.seed, "evolution") % 2**32,
            population_size=self.population,
        )
        told = history.rounds[1:]
        generation = [optimiser.ask() for _ in range(self.population)]
        while len(told) >= self.population:
            losses = [history.loss_of(entry) for entry in told[: self.population]]
            optimiser.tell(list(zip(generation, losses, strict=True)))
            told = told[self.population :]
            generation = [optimiser.ask() for _ in range(self.population)]
        values = dict(zip(blocks, generation[len(told)].tolist(), strict=True))
        note = f"CMA-ES, generation {optimiser.generation}, individual {len(told)}."
        return history.ranking({**history.start.scores, **values}, self.name, note)
