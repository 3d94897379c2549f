"""Absolute and solvation free energies of a molecule through one generator, and whether to believe them.

    python examples/free_energy.py                                     alanine dipeptide, vacuum to OBC implicit solvent
    python examples/free_energy.py --sequence ACE-GLY-NME --output gly2.json
    python examples/free_energy.py --generator my.bg                   one that was trained before (in the solvent)

The generator joins both states, for its own free energy is known; short dynamics in each of them confirms it.
Everything goes to a JSON file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from openmm import unit

from openmm_bg import BoltzmannGenerator, SystemPotential, free_energy, train
from openmm_bg.analysis import EnergyState, GeneratorState, backbone_pairs, ramachandran_angles
from openmm_bg.analysis.basins import assign_basins
from openmm_bg.systems import peptide
from openmm_bg.training.simulate import simulate

SOLUTE, SOLVENT = "amber99sbildn.xml", "amber99_obc.xml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequence", default="ACE-ALA-NME", help="peptide (default: ACE-ALA-NME)")
    parser.add_argument("--temperature", type=float, default=300.0, help="K (default: 300)")
    parser.add_argument("--generator", help="file of a generator; without it, one is trained for the solvent")
    parser.add_argument("--seconds", type=float, default=180.0, help="of training (default: 180)")
    parser.add_argument("--output", default="free_energy.json", help="file of the result (default: free_energy.json)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="hardly any training, to see that it runs")
    options = parser.parse_args()
    n_steps, seconds, n_samples = (20_000, 3.0, 500) if options.quick else (400_000, options.seconds, 20_000)
    temperature = options.temperature * unit.kelvin

    vacuum = peptide(options.sequence, forcefield=SOLUTE)
    solvated = peptide(options.sequence, forcefield=(SOLUTE, SOLVENT))
    with (
        SystemPotential(vacuum.system, vacuum.topology) as in_vacuum,
        SystemPotential(solvated.system, solvated.topology) as in_solvent,
    ):
        if options.generator:
            generator = BoltzmannGenerator.load(options.generator, system=solvated.system)
        else:
            generator = BoltzmannGenerator.from_system(
                solvated.system, solvated.topology, temperature, positions=solvated.positions, seed=options.seed
            )
            hot = simulate(solvated, 700 * unit.kelvin, n_steps=n_steps, stride=50, seed=options.seed)
            train(generator, in_solvent, data=hot, max_seconds=seconds, seed=options.seed)
        dynamics = {
            name: list(simulate(molecule, temperature, n_steps=n_steps, stride=100, seed=options.seed).positions)
            for name, molecule in (("vacuum", vacuum), ("solvent", solvated))
        }
        states = [
            GeneratorState("generator", generator),
            EnergyState("vacuum", in_vacuum, temperature),
            EnergyState("solvent", in_solvent, temperature),
        ]
        samples = {"generator": generator.sample(n_samples, rng=options.seed), **dynamics}
        result = free_energy(states, samples)

    print(result)
    for name in ("vacuum", "solvent"):
        print(f"absolute free energy in {name}: {result.absolute(name).reduced} kT ({result.absolute(name).measure})")
    solvation = result.difference("vacuum", "solvent")
    print(f"solvation free energy: {solvation.value.format('%.2f')}, error {solvation.error.format('%.2f')}")
    phi, psi = (
        angles[:, 0] for angles in ramachandran_angles(result.energies.positions, backbone_pairs(vacuum.topology))
    )
    rare = np.asarray(assign_basins(phi, psi) == 3)
    for name in ("vacuum", "solvent"):
        print(f"P(0 < phi < 2.3 rad) in {name}: {result.mean(rare, name)}")
    for check in result.verdict.checks:
        print(f"{check.status:<8} {check.name}: {check.text}")
    Path(options.output).write_text(result.to_json())
    print(f"{result.verdict.sentence} Wrote {options.output}.")


if __name__ == "__main__":
    main()
