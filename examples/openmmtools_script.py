"""An ordinary openmmtools script, and the lines that add a Boltzmann generator to it (marked NEW).

    python examples/train_your_own.py            makes ala2.bg
    python examples/openmmtools_script.py        Langevin dynamics with the generator's move
    python examples/openmmtools_script.py --without-generator     the script as it was

Prints the population of 0 < phi < 2.3 rad of alanine dipeptide, its error, and how often the chain crossed.
"""

from __future__ import annotations

import argparse

import numpy as np
from openmm import unit
from openmmtools.mcmc import LangevinDynamicsMove, MCMCSampler, SequenceMove
from openmmtools.states import SamplerState, ThermodynamicState

from openmm_bg import BoltzmannGenerator, BoltzmannGeneratorMove  # NEW
from openmm_bg.analysis import backbone_pairs, ramachandran_angles, rare_population, round_trips
from openmm_bg.systems import peptide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="ala2.bg", help="file of the generator (default: ala2.bg)")
    parser.add_argument("--without-generator", action="store_true", help="Langevin dynamics alone")
    parser.add_argument("--iterations", type=int, default=1000, help="iterations of 1 ps (default: 1000)")
    parser.add_argument("--quick", action="store_true", help="a few iterations, to see that it runs")
    options = parser.parse_args()

    molecule = peptide("ACE-ALA-NME")  # any System and Topology of your own
    state = ThermodynamicState(molecule.system, temperature=300 * unit.kelvin)
    start = SamplerState(molecule.positions * unit.nanometer)
    move = LangevinDynamicsMove(timestep=2 * unit.femtosecond, collision_rate=1 / unit.picosecond, n_steps=500)

    if not options.without_generator:
        generator = BoltzmannGenerator.load(options.generator, system=molecule.system)  # NEW
        jump = BoltzmannGeneratorMove(generator)  # NEW
        move = SequenceMove([jump, move])  # NEW

    sampler = MCMCSampler(state, start, move=move)
    pairs = backbone_pairs(molecule.topology)
    phi = []
    for _ in range(10 if options.quick else options.iterations):
        sampler.run(n_iterations=1)
        positions = sampler.sampler_state.positions.value_in_unit(unit.nanometer)
        phi.append(ramachandran_angles(positions, pairs)[0][0])

    trace = np.array(phi)
    print(f"P(0 < phi < 2.3 rad) = {rare_population(trace)}")
    print(f"{round_trips(trace).n_crossings} crossings in {len(trace)} iterations")
    if not options.without_generator:
        print(f"{jump.fraction_accepted:.1%} of {jump.n_proposed} proposals were accepted")


if __name__ == "__main__":
    main()
