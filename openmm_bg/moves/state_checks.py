"""What has to be true of the thermodynamic states of a replica exchange before one generator serves them all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import openmm
from openmm import unit
from openmmtools.states import SamplerState, ThermodynamicState, group_by_compatibility

from openmm_bg.density import ProposalDensity
from openmm_bg.moves.pose import check_free_pose


def check_states(
    generator: ProposalDensity,
    thermodynamic_states: Sequence[ThermodynamicState],
    sampler_states: SamplerState | Sequence[SamplerState] | None = None,
) -> None:
    """Raise ValueError unless a generator can serve all states of a simulation with several of them.

    A `BoltzmannGeneratorMove` refuses a state when it is first applied to it. By then openmmtools has created the
    storage; call this before `create` to know earlier. `LearnedReplicaExchangeSampler` does.

    Parameters
    ----------
    generator : ProposalDensity
    thermodynamic_states : sequence of ThermodynamicState
    sampler_states : SamplerState or sequence of SamplerState, optional
        The starting configurations: no more than states, with as many atoms as these.

    Raises
    ------
    ValueError
        If states differ in their atoms, masses or constraints, are periodic or at constant pressure (a barostat would
        change the box, with which the generator's molecule has nothing to do), or are not those of the generator; if
        there are more sampler states than thermodynamic states, or one has another number of atoms.
    """
    if not thermodynamic_states:
        raise ValueError("There is no thermodynamic state; give at least one.")
    first: tuple[object, ...] | None = None
    _, groups = group_by_compatibility(list(thermodynamic_states))
    for index in sorted(group[0] for group in groups):
        state = thermodynamic_states[index]
        if state.is_periodic or state.pressure is not None:
            raise ValueError(
                f"State {index} is periodic or at constant pressure. A generator proposes a whole molecule at once and "
                "knows of no box: use implicit solvent, nonbondedMethod=NoCutoff and no barostat in every state."
            )
        system = state.get_system(remove_thermostat=True, remove_barostat=True)
        found = (_masses(system), _constraints(system))
        if first is None:
            first = found
        for name, expected, value in zip(("atoms or masses", "constraints"), first, found, strict=True):
            if value != expected:
                raise ValueError(
                    f"State {index} differs from state 0 in its {name}: replicas could not be exchanged between them, "
                    "nor proposed by one generator. Make all Systems with the same topology, constraints and "
                    "hydrogen masses."
                )
        try:
            generator.check(system)
            if generator.pose == "invariant":
                check_free_pose(system)
        except ValueError as error:
            raise ValueError(f"The generator does not fit state {index}: {error}") from error
    if sampler_states is not None:
        starts = [sampler_states] if isinstance(sampler_states, SamplerState) else list(sampler_states)
        _check_starts(starts, thermodynamic_states)


def _check_starts(sampler_states: Iterable[SamplerState], thermodynamic_states: Sequence[ThermodynamicState]) -> None:
    starts = list(sampler_states)
    if len(starts) > len(thermodynamic_states):
        raise ValueError(
            f"There are {len(starts)} replicas (sampler states) for {len(thermodynamic_states)} thermodynamic states; "
            "replica exchange needs one replica a state. Leave some out, or add states."
        )
    for index, start in enumerate(starts):
        if start.n_particles != thermodynamic_states[0].n_particles:
            raise ValueError(
                f"Sampler state {index} has {start.n_particles} atoms, the thermodynamic states "
                f"{thermodynamic_states[0].n_particles}. Take the positions from the same topology."
            )


def _masses(system: openmm.System) -> tuple[float, ...]:
    return tuple(system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles()))


def _constraints(system: openmm.System) -> frozenset[tuple[int, int, float]]:
    found = set()
    for i in range(system.getNumConstraints()):
        first, second, length = system.getConstraintParameters(i)
        found.add((min(first, second), max(first, second), round(length.value_in_unit(unit.nanometer), 7)))
    return frozenset(found)
