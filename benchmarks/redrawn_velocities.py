"""Heat that redrawn velocities bring into a Langevin integrator with a long timestep: energies of chignolin.

python -m benchmarks.redrawn_velocities [--quick] [--output FOLDER]

Velocities are drawn from the Maxwell-Boltzmann distribution every so many steps, as after an accepted Monte Carlo move,
and the positions are left alone: averages of the energy must not change. Hydrogens have 3 amu.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import openmm

from benchmarks.table import Table
from openmm_bg.analysis import chain_mean
from openmm_bg.files import write_bytes
from openmm_bg.potentials import choose_platform
from openmm_bg.systems import MolecularSystem, chignolin

TEMPERATURE = 300.0
# Timestep (fs), friction (1/ps), time between redraws (ps; None: never) and length (ps).
RUNS = (
    (1.0, 1.0, None, 80.0),
    (4.0, 1.0, None, 240.0),
    (4.0, 1.0, 0.4, 240.0),
    (4.0, 5.0, 0.5, 240.0),
    (2.0, 1.0, 0.5, 160.0),
    (2.0, 5.0, None, 160.0),
    (2.0, 5.0, 0.5, 160.0),
)
EQUILIBRATION, FRAME = 10.0, 0.1  # ps


def measure(
    molecule: MolecularSystem, timestep: float, friction: float, redraw: float | None, length: float
) -> dict[str, Any]:
    """One run; energies in kJ/mol with standard errors."""
    for index, force in enumerate(molecule.system.getForces()):
        force.setForceGroup(index)
    groups = {type(force).__name__: force.getForceGroup() for force in molecule.system.getForces()}
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, friction, timestep / 1000.0)
    integrator.setRandomNumberSeed(1)
    choice = choose_platform(molecule.system, molecule.positions, task="dynamics")
    context = choice.create_context(molecule.system, integrator)
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.step(round(1000.0 * EQUILIBRATION / timestep))
    stride = round(1000.0 * FRAME / timestep)
    frames_between = None if redraw is None else max(1, round(redraw / FRAME))
    energies = []
    for frame in range(round(length / FRAME)):
        if frames_between is not None and frame % frames_between == 0:
            context.setVelocitiesToTemperature(TEMPERATURE, frame + 1)
        integrator.step(stride)
        parts = [context.getState(getEnergy=True, groups={group}) for group in groups.values()]
        energies.append([state.getPotentialEnergy()._value for state in parts])
    series = np.array(energies)
    shown = {"bonds": ["HarmonicBondForce"], "angles": ["HarmonicAngleForce"], "all": list(groups)}
    row: dict[str, Any] = {
        "timestep (fs)": timestep, "friction (1/ps)": friction,
        "redraw every (ps)": "never" if frames_between is None else round(frames_between * FRAME, 3),
    }  # fmt: skip
    for name, kinds in shown.items():
        mean = chain_mean(series[:, [list(groups).index(kind) for kind in kinds]].sum(axis=1))
        row[name] = f"{mean.value:.1f} ± {mean.error:.1f}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; nothing is kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    molecule = chignolin(hydrogen_mass=3.0)
    factor = 0.02 if options.quick else 1.0
    rows = [measure(molecule, *settings, factor * length) for *settings, length in RUNS]
    table = Table("Energies of chignolin (kJ/mol) with redrawn velocities", rows, [str(__doc__).split("\n\n")[2]])
    print(table.markdown())
    if not options.quick:
        write_bytes(options.output / "redrawn_velocities.md", f"{table.markdown()}\n".encode())


if __name__ == "__main__":
    main()
