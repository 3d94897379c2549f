"""Torsions of capped valine in vacuum at 400 K by temperature replica exchange, to hold the latent walk against.

Run from the repository: python -m benchmarks.dipeptide_reference --frames 3000
The torsions and energies of the lowest temperature go to `benchmarks/results/dipeptide_reference.npz`.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import openmm
from numpy.typing import NDArray

from benchmarks.replica_exchange_reference import FRICTION, RESULTS, TIMESTEP, exchange, start
from openmm_bg.analysis.dihedrals import torsion_angles
from openmm_bg.systems import MolecularSystem, peptide

FILE = RESULTS / "dipeptide_reference.npz"
TEMPERATURES = np.geomspace(400.0, 800.0, 4)
STEPS_PER_EXCHANGE = 250
EXCHANGES_PER_FRAME = 2  # a frame every picosecond
EQUILIBRATION_FRAMES = 100


def valine() -> MolecularSystem:
    """ACE-VAL-NME in vacuum, bonds to hydrogen rigid."""
    return peptide("ACE-VAL-NME", forcefield="amber14/protein.ff14SB.xml")


def torsions(molecule: MolecularSystem, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Phi, psi, chi1 and the torsions of the two peptide bonds, shape (..., n_atoms, 3) to (..., 5)."""
    first, second, third = (
        {atom.name: atom.index for atom in residue.atoms()} for residue in molecule.topology.residues()
    )
    n, ca, c, cb = (second[name] for name in ("N", "CA", "C", "CB"))
    rows = [
        [first["C"], n, ca, c],
        [n, ca, c, third["N"]],
        [n, ca, cb, second["CG1"]],
        [first["CH3"], first["C"], n, ca],
        [ca, c, third["N"], third["C" if "C" in third else "CH3"]],
    ]
    return torsion_angles(positions, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=3000, help="of a picosecond, those of equilibration not counted")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    molecule = valine()
    ladder = start(molecule, options.seed, TEMPERATURES)
    found, energies, coldest = [], [], []
    begin = time.perf_counter()
    for frame in range(EQUILIBRATION_FRAMES + options.frames):
        for _ in range(EXCHANGES_PER_FRAME):
            for context in ladder.contexts:
                context.getIntegrator().step(STEPS_PER_EXCHANGE)
            exchange(ladder)
        coldest.append(int(np.argmin(ladder.temperature_index)))
        state = ladder.contexts[coldest[-1]].getState(getPositions=True, getEnergy=True)
        found.append(torsions(molecule, state.getPositions(asNumpy=True)._value[None])[0])
        energies.append(state.getPotentialEnergy()._value)
        if frame % 100 == 99:
            described = {
                "molecule": "ACE-VAL-NME, amber14/protein.ff14SB.xml, vacuum, HBonds",
                "temperatures_K": TEMPERATURES.round(3).tolist(),
                "dynamics": f"LangevinMiddleIntegrator, {TIMESTEP * 1000:g} fs, friction {FRICTION:g}/ps",
                "exchange_rates": (ladder.accepted / np.maximum(ladder.attempts, 1)).round(3).tolist(),
                "changes_of_coldest_replica": int(np.count_nonzero(np.diff(coldest))),
                "frame_ps": STEPS_PER_EXCHANGE * EXCHANGES_PER_FRAME * TIMESTEP,
                "seconds": round(time.perf_counter() - begin),
                "seed": options.seed,
                "openmm": openmm.__version__,
            }
            np.savez_compressed(
                FILE,
                torsions=np.array(found[EQUILIBRATION_FRAMES:], dtype=np.float32),
                energy=np.array(energies[EQUILIBRATION_FRAMES:], dtype=np.float32),
                description=json.dumps(described),
            )
            print(frame + 1, described, flush=True)


if __name__ == "__main__":
    main()
