"""Train a Boltzmann generator for a peptide of your own and look at its weights.

    python examples/train_your_own.py                                  alanine dipeptide, ala2.bg
    python examples/train_your_own.py --sequence ACE-GLY-NME --output gly2.bg
    python examples/train_your_own.py --pdb my.pdb --output my.bg      one solute, with hydrogens

The result is one file, which the other examples and scripts of your own load.
"""

from __future__ import annotations

import argparse

from openmm import unit

from openmm_bg import BoltzmannGenerator, SystemPotential, reweight, train
from openmm_bg.systems import from_pdb, peptide
from openmm_bg.training.simulate import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequence", default="ACE-ALA-NME", help="peptide (default: ACE-ALA-NME)")
    parser.add_argument("--pdb", help="a structure instead of a sequence")
    parser.add_argument("--output", default="ala2.bg", help="file of the generator (default: ala2.bg)")
    parser.add_argument("--temperature", type=float, default=300.0, help="K (default: 300)")
    parser.add_argument("--data-temperature", type=float, default=700.0, help="K, of the data (default: 700)")
    parser.add_argument("--seconds", type=float, default=180.0, help="of training (default: 180)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="hardly any training, to see that it runs")
    options = parser.parse_args()
    n_steps, seconds, n_samples = (20_000, 3.0, 1000) if options.quick else (400_000, options.seconds, 10_000)

    molecule = peptide(options.sequence) if options.pdb is None else from_pdb(options.pdb, minimized=True)
    temperature = options.temperature * unit.kelvin
    data = simulate(molecule, options.data_temperature * unit.kelvin, n_steps=n_steps, stride=50, seed=options.seed)
    print(f"{data.energies.size} frames at {data.temperature:.0f} K")

    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, temperature, positions=molecule.positions, seed=options.seed
    )
    with SystemPotential(molecule.system, molecule.topology) as potential:
        train(generator, potential, data=data, max_seconds=seconds, seed=options.seed)
        generator.save(options.output)
        weights = reweight(generator.sample(n_samples, rng=options.seed), potential, temperature)
    print(f"ESS/N {weights.ess_fraction:.1%}, Pareto k {weights.pareto_k:.2f}; wrote {options.output}")


if __name__ == "__main__":
    main()
