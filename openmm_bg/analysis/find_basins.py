"""Basins found from the kinetics of chains: microstates, a Markov state model, and its metastable sets (deeptime)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from openmm_bg.analysis.membership import ELSEWHERE, Labels, Mask
from openmm_bg.density import FloatArray

_MOST_LEFT_OUT = 0.05  # of the samples, in microstates that were not both entered and left


@dataclass(frozen=True)
class FoundBasins:
    """Basins as sets of cells of a Voronoi partition of feature space; made by `find_basins`.

    Attributes
    ----------
    centers : ndarray, shape (n_microstates, n_features)
        Centres of the cells.
    basin_of : ndarray of int, shape (n_microstates,)
        Basin of each cell, 0 for the most populated; -1 for cells that the chains did not both enter and leave.
    timescales : ndarray, shape (n_basins - 1,)
        Relaxation times of the exchange between the basins, in frames.
    populations : ndarray, shape (n_basins,)
        Stationary probabilities of the Markov state model at the chains' temperature: a first look, without errors.
    """

    centers: FloatArray = field(repr=False)
    basin_of: Labels = field(repr=False)
    timescales: FloatArray
    populations: FloatArray

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the basins, from the most to the least populated: "basin 1", "basin 2", ..."""
        return tuple(f"basin {index + 1}" for index in range(len(self.populations)))

    def assign(self, features: ArrayLike) -> Labels:
        """Return the basin of each sample, shape (n, n_features) to (n,)."""
        values = _features(features)
        if values.shape[1] != self.centers.shape[1]:
            raise ValueError(f"{values.shape[1]} features were given; the basins are of {self.centers.shape[1]}")
        return np.asarray(self.basin_of[cKDTree(self.centers).query(values)[1]], dtype=np.int64)

    def masks(self, features: Callable[[FloatArray], ArrayLike]) -> dict[str, Mask]:
        """Return the basins as functions of positions, for `populations` of other samples.

        Parameters
        ----------
        features : callable
            The function of positions, (n, n_atoms, 3) nm to (n, n_features), whose values `find_basins` was given.
        """
        return {name: partial(self._inside, features, index) for index, name in enumerate(self.names)}

    def _inside(self, features: Callable[[FloatArray], ArrayLike], index: int, positions: FloatArray) -> Any:
        return self.assign(features(positions)) == index


def find_basins(
    chains: FloatArray | Sequence[FloatArray],
    n_basins: int,
    *,
    lagtime: int = 1,
    n_microstates: int = 100,
    seed: int = 0,
) -> FoundBasins:
    """Find the basins between which a simulation crosses seldom.

    k-means cells, a reversible Markov state model at a lag time, and PCCA+ (Röblitz and Weber, Adv. Data Anal.
    Classif. 7, 147 (2013)), by deeptime. The chains have to cross between the basins a few times; chains at a high
    temperature, or states of a chain with generator moves after each dynamics step, are not at equilibrium dynamics but
    divide the space all the same.

    Parameters
    ----------
    chains : ndarray, shape (n, n_features), or a list of these
        Features along each chain; of an angle give cosine and sine.
    n_basins : int
        How many to find.
    lagtime : int
        In frames; longer than the motion within a basin, shorter than a stay in it.
    n_microstates : int
        Number of cells.
    seed : int
        Of the first choice of cell centres.

    Returns
    -------
    FoundBasins

    Raises
    ------
    ImportError
        If deeptime is not installed.
    ValueError
        If a chain is not longer than the lag time, features are not finite, the chains do not connect the cells, or
        fewer basins than asked for are there.
    """
    try:
        from deeptime.clustering import KMeans
        from deeptime.markov import TransitionCountEstimator
        from deeptime.markov.msm import MaximumLikelihoodMSM
    except ImportError as error:
        raise ImportError(
            "find_basins needs deeptime, which is not installed: pip install 'openmm-bg[analysis]'. Or give "
            "`populations` the basins as functions of positions."
        ) from error
    series = [_features(chain) for chain in ([chains] if isinstance(chains, np.ndarray) else chains)]
    n_samples = sum(len(values) for values in series)
    if not series or any(len(values) <= lagtime for values in series) or lagtime < 1:
        raise ValueError(
            f"chains of {[len(values) for values in series]} frames were given for a lag time of {lagtime}; each needs "
            "more frames than the lag time, which is 1 or more"
        )
    if not 2 <= n_basins <= n_microstates <= n_samples:
        raise ValueError(
            f"{n_basins} basins of {n_microstates} cells were asked for from {n_samples} frames; expected two basins "
            "or more, at least as many cells as basins, and at least as many frames as cells"
        )
    everything = np.concatenate(series)
    clustering = KMeans(n_microstates, fixed_seed=seed, max_iter=100, n_jobs=1).fit_fetch(everything)
    centers = np.asarray(clustering.cluster_centers, dtype=np.float64)
    tree = cKDTree(centers)
    cells = [np.asarray(tree.query(values)[1], dtype=np.int64) for values in series]
    counts = TransitionCountEstimator(lagtime, "sliding", n_states=n_microstates).fit_fetch(cells)
    connected = counts.submodel_largest()
    symbols = np.asarray(connected.state_symbols)
    left_out = float(np.mean(~np.isin(np.concatenate(cells), symbols)))
    if left_out > _MOST_LEFT_OUT or len(symbols) < n_basins:
        raise ValueError(
            f"{left_out:.0%} of the frames lie in cells that the chains did not both enter and leave, so that they do "
            "not tell which basins there are: sample longer, at a higher temperature or with generator moves, or use "
            "fewer cells or a shorter lag time"
        )
    model = MaximumLikelihoodMSM(reversible=True).fit_fetch(connected)
    found = np.asarray(model.pcca(n_basins).assignments)
    stationary = np.bincount(found, weights=model.stationary_distribution, minlength=n_basins)
    if np.any(stationary == 0.0):
        raise ValueError(
            f"only {int(np.count_nonzero(stationary))} of the {n_basins} basins asked for are there; ask for fewer"
        )
    order = np.argsort(-stationary)
    basin_of = np.full(n_microstates, ELSEWHERE, dtype=np.int64)
    basin_of[symbols] = np.argsort(order)[found]
    timescales = np.asarray(model.timescales(k=n_basins - 1), dtype=np.float64)
    return FoundBasins(centers, basin_of, timescales, np.asarray(stationary[order], dtype=np.float64))


def _features(values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"features have shape {array.shape}; expected (n, n_features), all finite")
    return array
