"""Targeted free-energy perturbation: free-energy differences between states that a map brings to overlap.

With a bijection M from configurations of state A to those of state B the work of carrying x over is

    w_F(x) = u_B(M(x)) - u_A(x) - ln |det dM(x)|,        w_R(y) = u_A(M^-1(y)) - u_B(y) - ln |det dM^-1(y)|.

<exp(-w_F)>_A = exp(-(f_B - f_A)), one direction (Jarzynski, Phys. Rev. E 65, 046122 (2002)), and works of both
directions go into the acceptance ratio as unmapped ones do (Hahn and Then, Phys. Rev. E 79, 011113 (2009)). The
identity gives ordinary perturbation and the ordinary acceptance ratio.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmm_bg.analysis import mbar
from openmm_bg.analysis.checks import Check, conclude
from openmm_bg.analysis.free_energies import N_BOOTSTRAP, free_energy
from openmm_bg.analysis.free_energy_result import FreeEnergyResult
from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.sampled_states import drawn_positions, positions_of
from openmm_bg.analysis.states import GeneratorState, State, check_states
from openmm_bg.density import FloatArray, Samples
from openmm_bg.training.maps import FlowMap, check_same_measure

logger = logging.getLogger(__name__)

_COVERED_ENOUGH = 0.99


def targeted_free_energy(
    flow_map: FlowMap,
    state_a: State,
    samples_a: Any,
    state_b: State,
    samples_b: Any = None,
    *,
    decorrelate: bool = True,
    independent: Sequence[str] = (),
    n_bootstrap: int = N_BOOTSTRAP,
    rng: np.random.Generator | int | None = 0,
) -> FreeEnergyResult:
    """Estimate the free energy of one state relative to another through a map between them.

    The states may differ in temperature, force field, solvent model or an alchemical parameter; they must share atoms
    and constraints. Generators are states too.

    Parameters
    ----------
    flow_map : FlowMap
        Carries configurations of state A to state B. The estimate is exact for any map; a better one needs fewer
        samples. Samples that it was trained on are left out.
    state_a, state_b : EnergyState or GeneratorState
    samples_a, samples_b : samples
        Equilibrium samples of the states: positions of shape (n, n_atoms, 3) or (n_chains, n, n_atoms, 3) in nm, a
        `Samples` of a GeneratorState's density, an mdtraj Trajectory, a TrajectoryData, or a list of these, one for
        each chain. Without `samples_b`, perturbation in one direction.
    decorrelate : bool
        Whether to leave out correlated samples, by the statistical inefficiency of each chain.
    independent : sequence of str
        Names of states whose samples were drawn independently although they do not come as `Samples`. It is checked.
    n_bootstrap : int
        Number of resamples by blocks within chains.
    rng : Generator, int or None
        Source of the resamples.

    Returns
    -------
    FreeEnergyResult
        `difference(state_a.name, state_b.name)` is the answer. Its verdict counts the samples that the map could not
        carry. It holds no `energies`, for a sample has other coordinates in the other state: `mapped_energies` gives
        the works.

    Raises
    ------
    ValueError
        If map and states do not share atoms, constraints and masses; if no samples are left that the map was not
        trained on; for samples that cannot be used.

    Notes
    -----
    Where the round trip of the map does not close a sample has no image (see `FlowMap`), infinite work, and the weight
    zero, but it counts as a sample. The map is a bijection of a part A' of the space onto a part B'. With samples of
    both states this is exact: the acceptance ratio compares averages over A and B of one function and its image, any
    function will do (Bennett, J. Comput. Phys. 22, 245 (1976)), and here it is zero outside A' and B'. In one direction
    it is not: <exp(-w_F)>_A estimates Z_B(B') / Z_A, the part of B that the map can reach, and nothing in the samples
    of A tells how large the rest is.
    """
    energies, bare = _mapped_energies(flow_map, state_a, samples_a, state_b, samples_b, independent)
    if decorrelate:
        energies = energies.decorrelate()
    coverage = coverage_check(energies)
    result = free_energy(energies, n_bootstrap=n_bootstrap, rng=rng)
    mean_u, bootstrap_mean_u = _mean_u(result, bare[:, energies.kept])
    if coverage.status != "good":
        logger.warning("%s: %s", coverage.name, coverage.text)
    return replace(
        result,
        method="targeted BAR" if samples_b is not None else "targeted FEP",
        mean_u=mean_u,
        bootstrap_mean_u=bootstrap_mean_u,
        energies=None,
        verdict=conclude([*result.verdict.checks, coverage]),
    )


def mapped_energies(
    flow_map: FlowMap, state_a: State, samples_a: Any, state_b: State, samples_b: Any = None
) -> ReducedEnergies:
    """Evaluate samples of two states where they are and where a map carries them, correlated ones included.

    Parameters are those of `targeted_free_energy`. Row B of a sample of A is u_B(M(x)) - ln abs det dM(x), and likewise
    for row A of a sample of B; +inf where the map gives no image.
    """
    return _mapped_energies(flow_map, state_a, samples_a, state_b, samples_b, ())[0]


def coverage_check(energies: ReducedEnergies) -> Check:
    """Grade how many of the samples the map carried over with a finite energy."""
    own = energies.own
    carried = [
        float(np.isfinite(energies.u_kn[1 - k, own == k]).mean()) if energies.n_k[k] else math.nan for k in (0, 1)
    ]
    counted = [
        f"{share:.2%} of the samples of {name!r}"
        for share, name in zip(carried, energies.names, strict=True)
        if not math.isnan(share)
    ]
    text = f"The map carried over {' and '.join(counted)}; the others have the weight zero."
    enough = float(np.nanmin(carried)) >= _COVERED_ENOUGH
    if energies.n_k.min() == 0:
        lacking = energies.names[int(np.argmin(energies.n_k))]
        text += f" Without samples of {lacking!r} nothing tells whether the map reaches all of it."
        enough = False
    return Check("reach of the map", "good" if enough else "warning", text)


def _mapped_energies(
    flow_map: FlowMap, state_a: State, samples_a: Any, state_b: State, samples_b: Any, declared: Sequence[str]
) -> tuple[ReducedEnergies, FloatArray]:
    """Energies with ln |det| in the other state's row; and without it."""
    states = (state_a, state_b)
    if unknown := sorted(set(declared) - {state.name for state in states}):
        raise ValueError(f"{unknown} were declared independent, but the states are {[state.name for state in states]}")
    for state in states:
        _check_state(flow_map, state)
    n_atoms, measure = check_states(states)
    u_parts, bare_parts, chains, independent = [], [], [], []
    known = np.array([state.known_free_energy for state in states])
    for k, samples in enumerate((samples_a, samples_b)):
        parts = _chains(samples)
        drawn = bool(parts) and all(isinstance(part, Samples) for part in parts)
        independent.append(drawn or states[k].name in declared)
        for part in parts:
            positions = positions_of(part, states[k].name, n_atoms)
            if isinstance(part, Samples):
                positions = drawn_positions(part, states[k])
            positions = positions[~flow_map.was_trained_on(positions)]
            if not len(positions):
                continue
            mapped = flow_map.inverse(positions) if k else flow_map.forward(positions)
            own, other, log_det = states[k].reduced_potential(positions), *_energy(states[1 - k], mapped)
            bare_parts.append(np.stack([other, own] if k else [own, other]))
            u_parts.append(np.stack([other - log_det, own] if k else [own, other - log_det]))
            chains.append((k, len(positions)))
        if parts and not any(state == k for state, _ in chains):
            raise ValueError(
                f"the map was trained on every sample that was given of {states[k].name!r}, and an estimate from them "
                "would be too good; give samples that were not used, or train with a smaller `fraction`"
            )
    if not chains:
        raise ValueError("there are no samples; give those of at least one of the two states")
    lengths = [length for _, length in chains]
    energies = ReducedEnergies(
        [state.name for state in states],
        np.concatenate(u_parts, axis=1),
        np.array([sum(length for state, length in chains if state == k) for k in (0, 1)]),
        temperatures=np.array([state.kelvin for state in states]),
        known=known,
        measure=measure,
        chains=np.repeat(np.arange(len(chains)), lengths),
        independent=np.array(independent),
    )
    return energies, np.concatenate(bare_parts, axis=1)


def _check_state(flow_map: FlowMap, state: State) -> None:
    """Raise unless the state is on the measure of the map; charges and other parameters may differ."""
    molecule = getattr(flow_map.source, "molecule", None)
    system = getattr(getattr(state, "potential", None), "system", None)
    if system is not None and molecule is not None:
        replace(molecule, charges=None).check(system)
    elif system is not None:
        flow_map.source.check(system)
    if isinstance(state, GeneratorState):
        check_same_measure(flow_map.source, state.generator)


def _energy(state: State, mapped: Any) -> tuple[FloatArray, FloatArray]:
    """Reduced potentials of images, +inf where there is none, and ln |det|, zero where there is none."""
    there = np.isfinite(mapped.log_det)
    energy = np.full(len(mapped), np.inf)
    if there.any():
        energy[there] = state.reduced_potential(mapped.positions[there])
    return energy, np.where(there, mapped.log_det, 0.0)


def _chains(samples: Any) -> list[Any]:
    if samples is None:
        return []
    if isinstance(samples, list):
        return [chain for part in samples for chain in _chains(part)]
    positions = getattr(samples, "positions", samples)
    if not isinstance(samples, Samples) and np.ndim(positions) == 4:
        return list(positions)
    return [samples]


def _mean_u(result: FreeEnergyResult, bare: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Averages of each state's own reduced potential, in which ln |det| has no part, and their resamples."""
    energies = result.energies
    assert energies is not None  # of MBAR

    def average(f_k: FloatArray, counts: NDArray[np.int64] | None) -> FloatArray:
        weights = np.exp(mbar.log_weights(energies, f_k, counts))
        return np.asarray(np.sum(weights * np.where(weights > 0.0, bare, 0.0), axis=1))

    resamples = energies.resamples(len(result.bootstrap_f_k), result.seed)
    replicates = [average(f_k, counts) for f_k, counts in zip(result.bootstrap_f_k, resamples, strict=True)]
    return average(result.f_k, None), np.array(replicates).reshape(-1, energies.n_states)
