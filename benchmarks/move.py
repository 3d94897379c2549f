"""The generator move beside the work it cannot do without: the flow's two passes and the energies."""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
from openmm import unit
from openmmtools.cache import ContextCache
from openmmtools.states import SamplerState, ThermodynamicState

from benchmarks.molecules import TEMPERATURE, Options, alanine, generator_for
from benchmarks.table import Table
from benchmarks.timing import interleave, microseconds, ratio
from openmm_bg.moves import BoltzmannGeneratorMove, Independence
from openmm_bg.moves.energies import ContextEnergies
from openmm_bg.potentials import choose_platform

GOAL = 1.10


def run(options: Options) -> Table:
    """Time `apply` and its parts in the same Context."""
    molecule = alanine()
    generator = generator_for(molecule)
    choice = choose_platform(molecule.system, molecule.positions, task="dynamics")
    state = ThermodynamicState(molecule.system, TEMPERATURE * unit.kelvin)
    contexts = ContextCache(platform=openmm.Platform.getPlatformByName(choice.name))
    sampler_state = SamplerState(molecule.positions * unit.nanometer)
    context, _ = contexts.get_context(state)
    energies = ContextEnergies(context, state.kT.value_in_unit(unit.kilojoule_per_mole))
    rows: list[dict[str, Any]] = []
    for n in (16, 64, 256):
        move = BoltzmannGeneratorMove(generator, kernel=Independence(n), seed=1)
        rng = np.random.default_rng(0)
        samples = generator.sample(n, rng=0).positions
        latents = generator.to_latent(samples)
        scanned = np.concatenate([molecule.positions[None], samples])

        def flow_and_energy(n=n, rng=rng) -> None:
            drawn = generator.sample(n, rng=rng).positions
            batch = np.concatenate([molecule.positions[None], drawn])
            generator.log_prob(batch)
            energies.reduced_potential(batch)

        def least(latents=latents, scanned=scanned) -> None:
            generator.from_latent(latents)
            generator.log_prob(scanned)
            energies.reduced_potential(scanned)

        times = interleave(
            {
                "apply": lambda move=move: move.apply(state, sampler_state, contexts),
                "flow and energy": flow_and_energy,
                "least": least,
                "energy": lambda scanned=scanned: energies.reduced_potential(scanned),
            },
            5 if options.quick else 60,
        )
        rows.append(
            {
                "proposals": n,
                "apply / us per proposal": microseconds(times, "apply", n),
                "energies / us per proposal": microseconds(times, "energy", n),
                "apply / (sample + log_prob + energies)": ratio(times, "apply", "flow and energy"),
                "apply / (one forward + one inverse pass + energies)": ratio(times, "apply", "least"),
            }
        )
    worst = max(row["apply / (sample + log_prob + energies)"] for row in rows if row["proposals"] >= 64)
    met = "met" if worst <= GOAL else "missed"
    notes = [f"Alanine dipeptide on {choice.name}. Goal: at most {GOAL:.2f} from 64 proposals on; {met} ({worst:.3f})."]
    return Table("Overhead of the move", rows, notes)
