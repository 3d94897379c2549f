"""How a learned replica exchange mixes: swaps with the generator, and those of them that change the basin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from openmm import unit

from openmm_bg.density import FloatArray

if TYPE_CHECKING:
    from openmmtools.multistate import MultiStateReporter

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ExchangeStatistics:
    """Swaps between the generator and each of the other states of a learned replica exchange.

    A generator that has learnt one basin only exchanges often and helps little: look at the crossings.

    Attributes
    ----------
    n_proposed, n_accepted : ndarray of int, shape (n_states,)
        Swaps with each state, the generator's left out.
    n_crossings_proposed, n_crossings_accepted : ndarray of int, shape (n_states,), or None
        Those of them whose two configurations are in different basins; None if no basins were given.
    """

    n_proposed: IntArray
    n_accepted: IntArray
    n_crossings_proposed: IntArray | None = None
    n_crossings_accepted: IntArray | None = None

    @property
    def fraction_accepted(self) -> FloatArray:
        """Accepted part of the swaps with each state, shape (n_states,); NaN where none was proposed."""
        return _ratio(self.n_accepted, self.n_proposed)

    @property
    def fraction_crossings_accepted(self) -> FloatArray:
        """Accepted part of the swaps between different basins, shape (n_states,); NaN where none was proposed.

        Raises
        ------
        ValueError
            If the basins are not known.
        """
        if self.n_crossings_accepted is None or self.n_crossings_proposed is None:
            raise ValueError("The basins of the configurations are not known; call exchange_statistics with `basin`.")
        return _ratio(self.n_crossings_accepted, self.n_crossings_proposed)


def exchange_statistics(
    reporter: MultiStateReporter, basin: Callable[[FloatArray], Any] | None = None, *, discard: int = 0
) -> ExchangeStatistics:
    """Count the swaps of a stored `LearnedReplicaExchangeSampler`, those between basins apart.

    Parameters
    ----------
    reporter : openmmtools.multistate.MultiStateReporter
        Open for reading.
    basin : callable, optional
        Positions in nm, shape (n_replicas, n_atoms, 3), to one label for each replica. The atoms are the reporter's
        `analysis_particle_indices` if it has any, else all of them; then it has to store every iteration
        (`checkpoint_interval=1`).
    discard : int
        First iterations to leave out.

    Raises
    ------
    ValueError
        If positions are needed but were not stored in every iteration, or the storage is that of another sampler.
    """
    accepted, proposed = (np.asarray(counts) for counts in reporter.read_mixing_statistics())
    last = len(proposed) - 1
    drawn = proposed.shape[1] - 1
    swept = range(discard + 1, last + 1)
    if drawn < 1 or np.any(proposed[1:, drawn, :drawn] != 1):
        raise ValueError(
            f"{reporter.filepath} is not that of a learned replica exchange: its last state was not offered to each of "
            "the others once in every iteration."
        )
    counts = [proposed[swept, drawn, :drawn].sum(0), accepted[swept, drawn, :drawn].sum(0)]
    if basin is None:
        return ExchangeStatistics(*counts)
    states = np.asarray(reporter.read_replica_thermodynamic_states())
    crossings = np.zeros((2, drawn), dtype=np.int64)
    for iteration in swept:
        labels = np.asarray(basin(_positions(reporter, iteration - 1)))
        label_of = labels[np.argsort(states[iteration - 1])]  # by state
        for state in range(drawn):  # the sampler's order
            if label_of[state] != label_of[drawn]:
                crossings[0, state] += 1
                crossings[1, state] += accepted[iteration, drawn, state]
            if accepted[iteration, drawn, state]:
                label_of[[state, drawn]] = label_of[[drawn, state]]
    return ExchangeStatistics(*counts, *crossings)


def _positions(reporter: MultiStateReporter, iteration: int) -> FloatArray:
    subset = len(reporter.analysis_particle_indices) > 0
    stored = reporter.read_sampler_states(iteration, analysis_particles_only=subset)
    if stored is None:
        raise ValueError(
            f"{reporter.filepath} holds no positions of iteration {iteration}. Store them in every iteration: "
            "MultiStateReporter(..., analysis_particle_indices=...) with the atoms that tell the basins apart, or "
            "checkpoint_interval=1."
        )
    return np.array([state.positions.value_in_unit(unit.nanometer) for state in stored])


def _ratio(part: IntArray, whole: IntArray) -> FloatArray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
