"""Populations of basins from chains, from labels or from weighted samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from openmm import unit

from openmm_bg.analysis.membership import ELSEWHERE, Labels, Mask, assign, in_nanometers
from openmm_bg.analysis.population_result import Populations
from openmm_bg.analysis.thermal import kelvin
from openmm_bg.analysis.weights import Weights
from openmm_bg.density import FloatArray, Samples


def populations(
    samples: Any,
    basins: Mapping[str, Mask] | Sequence[str],
    temperature: unit.Quantity | float | None = None,
    *,
    weights: Any = None,
    independent: bool = False,
) -> Populations:
    """Estimate the populations of basins and their free energies.

    Parameters
    ----------
    samples : positions, TrajectoryData, Weights, labels, or a list of positions or labels
        Positions of shape (n, n_atoms, 3) in nm, as a Quantity or as an mdtraj Trajectory, in the order in which they
        were sampled; or the integer label of the basin of each, shape (n,), -1 for none. A list, and an array of shape
        (n_chains, n, n_atoms, 3), is several chains, which are kept apart. TrajectoryData bring their temperature.
        `Weights` (from `reweight`) bring positions, weights and temperature, and are independent.
    basins : mapping of str to callable, or sequence of str
        For positions: functions that take (m, n_atoms, 3) in nm and return m booleans. For labels: the names of
        0, 1, 2, ... Basins must not overlap; they need not cover everything.
    temperature : Quantity or float (K)
        For free energies; may be left out with `Weights` and TrajectoryData.
    weights : array_like, shape (n,), or a list of these, optional
        Non-negative weights of any normalisation, as for frames of a biased simulation, exp(V/kT).
    independent : bool
        Whether the samples were drawn independently; else they are taken for correlated chains.

    Returns
    -------
    Populations
        Read its `verdict` before its numbers.

    Raises
    ------
    ValueError
        If shapes do not fit, a sample lies in two basins, a weight is negative or not finite, there are fewer than two
        samples in a chain, or draws of a generator come without weights.
    """
    if isinstance(samples, Weights):
        if weights is not None or (temperature is not None and kelvin(temperature) != samples.temperature):
            raise ValueError(
                f"the Weights bring their own weights and temperature ({samples.temperature:g} K); leave both out, or "
                "reweight at the temperature that you want"
            )
        return populations(samples.positions, basins, samples.temperature, weights=samples.weights, independent=True)
    if isinstance(samples, Samples):
        raise ValueError(
            "the draws of a generator follow the generator and not the ensemble; weigh them for a potential, "
            "populations(reweight(samples, potential, temperature), basins)"
        )
    if getattr(getattr(samples, "positions", None), "ndim", 0) == 4:  # TrajectoryData
        temperature = samples.temperature if temperature is None else temperature
        samples = samples.positions
    if isinstance(samples, np.ndarray) and samples.ndim == 4:
        samples = list(samples)
    if temperature is None:
        raise ValueError("free energies need the temperature of the samples; give it in K or as a Quantity")
    several = isinstance(samples, list | tuple)
    chains = list(samples) if several else [samples]
    given = [None] * len(chains) if weights is None else list(weights) if several else [weights]
    if not chains or len(given) != len(chains):
        raise ValueError(f"{len(given)} arrays of weights were given for {len(chains)} chains; give one for each chain")
    names = tuple(basins)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the basins are {names}; at least one is needed, and each with a name of its own")
    checked = [_chain(chain, w, basins) for chain, w in zip(chains, given, strict=True)]
    all_weights = None if weights is None else tuple(w for _, w in checked if w is not None)
    if all_weights is not None and not any(w.any() for w in all_weights):
        raise ValueError("all weights are zero; there is nothing to average")
    return Populations(names, kelvin(temperature), tuple(labels for labels, _ in checked), all_weights, independent)


def _chain(samples: Any, weights: Any, basins: Mapping[str, Mask] | Sequence[str]) -> tuple[Labels, FloatArray | None]:
    """Labels and checked weights of one chain; a sample of weight zero is in no basin."""
    is_labels = not isinstance(basins, Mapping)
    x = np.asarray(samples) if is_labels else in_nanometers(samples)
    if len(x) < 2 or (is_labels and (x.ndim != 1 or not np.issubdtype(x.dtype, np.integer))):
        expected = "integer labels of shape (n,), as only names of basins were given" if is_labels else "positions"
        raise ValueError(f"a chain has shape {x.shape} and type {x.dtype}; expected two or more {expected}")
    w = None if weights is None else np.asarray(weights, dtype=np.float64)
    if w is not None and (w.shape != (len(x),) or not np.isfinite(w).all() or np.any(w < 0.0)):
        raise ValueError(
            f"weights of shape {w.shape} for {len(x)} samples: one finite, non-negative weight each is needed"
        )
    counts = np.ones(len(x), dtype=bool) if w is None else w > 0.0
    labels = np.full(len(x), ELSEWHERE, dtype=np.int64)
    labels[counts] = assign(x[counts], basins) if isinstance(basins, Mapping) else x[counts]
    if np.any(labels < ELSEWHERE) or np.any(labels >= len(basins)):
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}; there are {len(basins)} names")
    return labels, w
