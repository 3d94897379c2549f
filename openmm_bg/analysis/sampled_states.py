"""From samples of thermodynamic states to reduced potentials of all samples in all states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import unit

from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.states import GeneratorState, State, check_states
from openmm_bg.density import FloatArray, Samples

_LOG_PROB_TOLERANCE = 0.01  # forward and inverse pass of a float32 network differ by less


def evaluate(
    states: Sequence[State],
    samples: Mapping[str, Any],
    *,
    decorrelate: bool = True,
    independent: Sequence[str] = (),
) -> ReducedEnergies:
    """Evaluate all samples in all states.

    Parameters
    ----------
    states : sequence of EnergyState or GeneratorState
    samples : mapping of str to samples
        For each sampled state, by name: positions of shape (n, n_atoms, 3) in nm or as a Quantity in the order in
        which they were sampled, a `Samples`, an mdtraj Trajectory, or a list of these: several chains.
    decorrelate : bool
        Whether to leave out correlated samples, by the statistical inefficiency of each chain.
    independent : sequence of str
        States whose samples were drawn independently although they do not come as `Samples`. It is checked.

    Returns
    -------
    ReducedEnergies

    Raises
    ------
    ValueError
        If samples of an unknown state or of another molecule are given, the log density that came with samples is not
        that of their state, or the energies are refused by `ReducedEnergies`.
    """
    n_atoms, measure = check_states(states)
    names = [state.name for state in states]
    if unknown := [name for name in [*samples, *independent] if name not in names]:
        raise ValueError(f"samples of {unknown} were given, but the states are {names}")
    positions: list[FloatArray] = []
    chains: list[NDArray[np.int64]] = []
    n_k: list[int] = []
    drawn: list[bool] = []
    known: list[float] = []
    for state in states:
        parts = samples.get(state.name, [])
        parts = parts if isinstance(parts, list) else [parts]
        arrays = [positions_of(part, state.name, n_atoms) for part in parts]
        arrays = [
            drawn_positions(part, state) if isinstance(part, Samples) else array
            for part, array in zip(parts, arrays, strict=True)
        ]
        for array in arrays:
            n_atoms = array.shape[1]
            positions.append(array)
            chains.append(np.full(len(array), len(chains)))
        n_k.append(sum(len(array) for array in arrays))
        # A draw off the support is one that a density normalised on the support would not have made.
        n_drawn = sum(len(part) for part in parts if isinstance(part, Samples))
        n_lost = n_drawn - sum(len(a) for p, a in zip(parts, arrays, strict=True) if isinstance(p, Samples))
        known.append(state.known_free_energy - (math.log1p(-n_lost / n_drawn) if 0 < n_lost < n_drawn else 0.0))
        drawn.append(bool(parts) and (all(isinstance(p, Samples) for p in parts) or state.name in independent))
    if not positions:
        raise ValueError(f"none of the states {names} has samples; give those of at least one")
    everything = np.concatenate(positions)
    energies = ReducedEnergies(
        names,
        np.stack([state.reduced_potential(everything) for state in states]),
        np.array(n_k),
        temperatures=np.array([state.kelvin for state in states]),
        known=np.array(known),
        measure=measure,
        chains=np.concatenate(chains),
        independent=np.array(drawn),
        positions=everything,
    )
    return energies.decorrelate() if decorrelate else energies


def positions_of(samples: Any, name: str, n_atoms: int | None) -> FloatArray:
    """Positions in nm, shape (n, n_atoms, 3), of an array, Quantity, `Samples` or mdtraj Trajectory, checked.

    Raises
    ------
    ValueError
        If the shape is another; `name` is the state that they are said to be from.
    """
    positions = samples.positions if isinstance(samples, Samples) else getattr(samples, "xyz", samples)
    if isinstance(positions, unit.Quantity):
        positions = positions.value_in_unit(unit.nanometer)
    array = np.asarray(positions, dtype=np.float64)
    if array.ndim != 3 or array.shape[2] != 3 or (n_atoms is not None and array.shape[1] != n_atoms):
        expected = "(n, n_atoms, 3)" if n_atoms is None else f"(n, {n_atoms}, 3)"
        raise ValueError(f"the samples of state {name!r} have shape {array.shape}; expected {expected}, in nm")
    return array


def drawn_positions(samples: Samples, state: State) -> FloatArray:
    """Positions of independent draws that are on the support of a density, after a look at their log densities.

    Raises
    ------
    ValueError
        If the state is not a GeneratorState, or its log density is not the one that the draws came with.
    """
    if not isinstance(state, GeneratorState):
        raise ValueError(
            f"draws of a density, with their log density, were given as samples of {state.name!r}, which is a "
            "potential at a temperature; give them to the GeneratorState of that density"
        )
    on_support = np.isfinite(samples.log_prob) & np.isfinite(samples.positions).all(axis=(1, 2))
    positions = samples.positions[on_support]
    found = -state.reduced_potential(positions)
    difference = np.abs(found - samples.log_prob[on_support])
    if len(difference) and not np.median(difference) <= _LOG_PROB_TOLERANCE:
        raise ValueError(
            f"the draws given for {state.name!r} carry log densities that differ from its own by "
            f"{np.median(difference):.3g} (median): they are from another density, or their densities are clipped or "
            "not normalised; draw them with its `sample`"
        )
    return positions[np.isfinite(found)]
