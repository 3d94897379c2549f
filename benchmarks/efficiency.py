"""Accepted independent samples per second, beside energy evaluations per second in the same Context."""

from __future__ import annotations

import openmm
from openmm import unit
from openmmtools.cache import ContextCache
from openmmtools.states import SamplerState, ThermodynamicState

from benchmarks.molecules import TEMPERATURE, Options, shaken, trained
from benchmarks.table import Table
from benchmarks.timing import interleave, microseconds, ratio
from openmm_bg.moves import BoltzmannGeneratorMove, Independence
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.potentials import choose_platform

N_PROPOSALS = 256


def run(options: Options) -> Table:
    """Apply the move of a trained generator in turns with plain energies."""
    molecule, generator, origin = trained(options)
    choice = choose_platform(molecule.system, molecule.positions, task="dynamics")
    state = ThermodynamicState(molecule.system, TEMPERATURE * unit.kelvin)
    contexts = ContextCache(platform=openmm.Platform.getPlatformByName(choice.name))
    context, _ = contexts.get_context(state)
    energies = ContextEnergies(context, state.kT.value_in_unit(unit.kilojoule_per_mole))
    move = BoltzmannGeneratorMove(generator, kernel=Independence(N_PROPOSALS), seed=1)
    sampler_state = SamplerState(molecule.positions * unit.nanometer)
    move.apply(state, sampler_state, contexts)  # away from the start, which is no sample
    move.reset_statistics()
    configurations = shaken(molecule.positions, N_PROPOSALS)
    times = interleave(
        {
            "move": lambda: move.apply(state, sampler_state, contexts),
            "energies": lambda: energies.reduced_potential(configurations),
        },
        5 if options.quick else 60,
    )
    cost = ratio(times, "move", "energies")
    accepted = move.fraction_accepted
    row = {
        "proposals / s": 1e6 / microseconds(times, "move", N_PROPOSALS),
        "accepted": accepted,
        "accepted samples / s": accepted * 1e6 / microseconds(times, "move", N_PROPOSALS),
        "energies / s": 1e6 / microseconds(times, "energies", N_PROPOSALS),
        "accepted samples per energy": accepted / cost if cost else 0.0,
        "energies' time per accepted sample": cost / accepted if accepted else None,
    }
    notes = [
        f"Alanine dipeptide at {TEMPERATURE:g} K on {choice.name}, {N_PROPOSALS} proposals a scan; generator from "
        f"{origin}. Every accepted proposal is drawn independently of the state before it; the last column says how "
        "many plain energy evaluations the same machine makes in the time of one."
    ]
    return Table("Accepted independent samples", [row], notes)
