"""Replica exchange over temperatures with a Boltzmann generator's move, stored in a file and resumable.

    python examples/train_your_own.py        makes ala2.bg
    python examples/replica_exchange.py      writes replica_exchange.nc; run it again to go on from there

Every replica uses the same generator at its own temperature. Prints the acceptance at each of them, and the population
of 0 < phi < 2.3 rad at 300 K.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from openmm import unit
from openmmtools.mcmc import LangevinDynamicsMove, SequenceMove
from openmmtools.multistate import MultiStateReporter, ReplicaExchangeSampler
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg import BoltzmannGenerator, BoltzmannGeneratorMove
from openmm_bg.analysis import backbone_pairs, rare_population, torsion_angles
from openmm_bg.moves import Independence, Scan, observe_scans, register
from openmm_bg.systems import MolecularSystem, peptide

TEMPERATURES = [300.0, 350.0, 410.0, 480.0]  # K


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="ala2.bg", help="file of the generator (default: ala2.bg)")
    parser.add_argument("--storage", type=Path, default=Path("replica_exchange.nc"))
    parser.add_argument("--iterations", type=int, default=200, help="iterations of 1 ps to add (default: 200)")
    parser.add_argument("--quick", action="store_true", help="a few iterations, to see that it runs")
    options = parser.parse_args()
    n_iterations = 2 if options.quick else options.iterations

    molecule = peptide("ACE-ALA-NME")
    generator = BoltzmannGenerator.load(options.generator, system=molecule.system)
    register(generator)  # so that a stored simulation finds it, wherever its file is by now

    if options.storage.exists():
        sampler = ReplicaExchangeSampler.from_storage(MultiStateReporter(options.storage, open_mode="r+"))
        print(f"going on from iteration {sampler.iteration}")
    else:
        sampler = create(generator, molecule, options.storage)

    phi_atoms = backbone_pairs(molecule.topology)[0].phi
    phi: list[np.ndarray] = []

    def record(scan: Scan, state: ThermodynamicState) -> None:
        if np.isclose(state.temperature.value_in_unit(unit.kelvin), TEMPERATURES[0]):
            phi.append(torsion_angles(scan.positions[scan.chain], phi_atoms))

    with observe_scans(record):
        sampler.extend(n_iterations=n_iterations)

    for temperature, move in zip(TEMPERATURES, sampler.mcmc_moves, strict=True):
        print(f"{temperature:.0f} K: {move.move_list[0].fraction_accepted:.1%} of the proposals accepted")
    print(f"P(0 < phi < 2.3 rad) at {TEMPERATURES[0]:.0f} K = {rare_population(np.concatenate(phi))}")


def create(generator: BoltzmannGenerator, molecule: MolecularSystem, storage: Path) -> ReplicaExchangeSampler:
    """A new simulation: one state for each temperature, dynamics and the generator's move in all of them."""
    langevin = LangevinDynamicsMove(timestep=2 * unit.femtosecond, collision_rate=1 / unit.picosecond, n_steps=500)
    move = SequenceMove([BoltzmannGeneratorMove(generator, kernel=Independence(n_proposals=32)), langevin])
    states = [ThermodynamicState(molecule.system, temperature=t * unit.kelvin) for t in TEMPERATURES]
    sampler = ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=1)
    reporter = MultiStateReporter(storage, checkpoint_interval=2)
    sampler.create(states, [SamplerState(molecule.positions * unit.nanometer)], storage=reporter)
    return sampler


if __name__ == "__main__":
    main()
