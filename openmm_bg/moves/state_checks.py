"""What has to be true of the thermodynamic states of a replica exchange before one generator serves them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import openmm
from openmm import unit
from openmmtools.mcmc import MCMCMove, SequenceMove, WeightedMove
from openmmtools.states import SamplerState, ThermodynamicState, group_by_compatibility

from openmm_bg.density import ProposalDensity
from openmm_bg.moves.move import BoltzmannGeneratorMove
from openmm_bg.moves.pose import check_free_pose
from openmm_bg.moves.ranks import check_ranks
from openmm_bg.moves.solute import solute_system


def check_states(
    generator: ProposalDensity,
    thermodynamic_states: Sequence[ThermodynamicState],
    sampler_states: SamplerState | Sequence[SamplerState] | None = None,
) -> None:
    """Raise ValueError unless a generator can serve all states of a simulation with several of them.

    A `BoltzmannGeneratorMove` refuses a state when it is first applied to it. By then openmmtools has created the
    storage, unless that is a `DurableReporter`; call this before `create` to know earlier.
    `LearnedReplicaExchangeSampler` does.

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
    _check_same_particles(thermodynamic_states)
    for index in sorted(set(_kinds(thermodynamic_states))):
        _check_fit(generator, index, thermodynamic_states[index])
    if sampler_states is not None:
        starts = [sampler_states] if isinstance(sampler_states, SamplerState) else list(sampler_states)
        _check_starts(starts, thermodynamic_states)


def check_start(
    thermodynamic_states: Sequence[ThermodynamicState],
    sampler_states: Sequence[SamplerState],
    mcmc_moves: Sequence[MCMCMove],
) -> None:
    """Raise an error unless a simulation with generator moves among its moves, one for each state, can be run.

    Simulations without any are not judged.

    Raises
    ------
    ValueError
        As `check_states`, but a move with `atom_subset` may be in a periodic state; or if there are more MPI processes
        than replicas.
    RuntimeError
        If MPI processes do not know of each other (`check_ranks`).
    """
    moves = [list(_generator_moves(move)) for move in mcmc_moves]
    if not any(moves):
        return
    check_ranks(len(sampler_states))
    _check_same_particles(thermodynamic_states)
    seen = set()
    for index, kind in enumerate(_kinds(thermodynamic_states)):
        for move in moves[index]:
            case = (kind, move.generator.content_hash, str(move.atom_subset))
            if case not in seen:
                _check_fit(move.generator, index, thermodynamic_states[index], move.atom_subset)
            seen.add(case)


def _generator_moves(move: MCMCMove) -> Iterator[BoltzmannGeneratorMove]:
    """All generator moves of a move, however deep they are nested."""
    kinds = type(move).__mro__  # by openmmtools' metaclass, everything is an instance of any class of moves
    if BoltzmannGeneratorMove in kinds:
        yield cast(BoltzmannGeneratorMove, move)
    elif SequenceMove in kinds:
        for part in cast(Any, move).move_list:
            yield from _generator_moves(part)
    elif WeightedMove in kinds:
        for part, _ in cast(Any, move).move_set:
            yield from _generator_moves(part)


def _kinds(thermodynamic_states: Sequence[ThermodynamicState]) -> list[int]:
    """For every state the index of the first state of the same System."""
    _, groups = group_by_compatibility(list(thermodynamic_states))
    first = {index: group[0] for group in groups for index in group}
    return [first[index] for index in range(len(thermodynamic_states))]


def _check_same_particles(thermodynamic_states: Sequence[ThermodynamicState]) -> None:
    first: tuple[object, ...] | None = None
    for index in sorted(set(_kinds(thermodynamic_states))):
        system = thermodynamic_states[index].get_system(remove_thermostat=True, remove_barostat=True)
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


def _check_fit(
    generator: ProposalDensity, index: int, state: ThermodynamicState, atom_subset: Sequence[int] | None = None
) -> None:
    if atom_subset is None and (state.is_periodic or state.pressure is not None):
        raise ValueError(
            f"State {index} is periodic or at constant pressure. A generator proposes a whole molecule at once and "
            "knows of no box: use implicit solvent, nonbondedMethod=NoCutoff and no barostat in every state."
        )
    system = state.get_system(remove_thermostat=True, remove_barostat=True)
    try:
        generator.check(system if atom_subset is None else solute_system(system, atom_subset))
        if generator.pose == "invariant" and atom_subset is None:
            check_free_pose(system)
    except ValueError as error:
        raise ValueError(f"The generator does not fit state {index}: {error}") from error


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
