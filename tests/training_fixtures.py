"""A molecule of four atoms with independent frames from its exact ensemble, and generators for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from small_molecules import CHAIN, TEMPERATURE, SmallMolecule

from openmm_bg.flows import FlowConfig
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.training import TrainingHistory

MASSES = (15.0, 14.0, 14.0, 15.0)
MOLECULE = SmallMolecule(MASSES, CHAIN, bond_spring=4e4, angle_spring=100.0, torsion=(2, 0.3, 2.5))
TWO_WELLS = SmallMolecule(MASSES, CHAIN, bond_spring=4e4, angle_spring=100.0, torsion=(2, 0.3, 8.0))
ONE_WELL = SmallMolecule(MASSES, CHAIN, bond_spring=4e4, angle_spring=100.0, torsion=(1, -1.5, 30.0))
SMALL = FlowConfig(2, 8, 16, 2, 8, 16, 16)


def untrained(
    molecule: SmallMolecule = MOLECULE, seed: int = 0, temperature: float = TEMPERATURE
) -> BoltzmannGenerator:
    return BoltzmannGenerator.from_system(
        molecule.system(), molecule.topology(), temperature, flow=SMALL, positions=molecule.reference(), seed=seed
    )


def frames(
    n: int, molecule: SmallMolecule = MOLECULE, seed: int = 1, temperature: float = TEMPERATURE
) -> tuple[np.ndarray, np.ndarray]:
    """Independent positions, shape (n, n_atoms, 3), of an unconstrained molecule, and their exact log density.

    Every internal coordinate is independent of the others here: each is drawn by inverting its cumulative distribution
    on a grid. The density is that of `log_prob`: per internal coordinate, less 2 ln b and ln sin(theta).
    """
    rng = np.random.default_rng(seed)
    columns, log_density = [], np.zeros(n)
    for coordinate in range(3 * molecule.n_atoms - 6):
        grid, density = molecule.distribution(coordinate, temperature)
        cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
        values = np.interp(rng.random(n) * cumulative[-1], cumulative, grid)
        columns.append(values)
        log_density += np.log(np.interp(values, grid, density))
    q = np.array(columns).T
    n_bonds = molecule.n_atoms - 1
    bonds, angles, torsions = np.split(q, [n_bonds, 2 * n_bonds - 1], axis=1)
    log_density -= 2.0 * np.log(bonds).sum(-1) + np.log(np.sin(angles)).sum(-1)
    return molecule.positions(bonds, angles, torsions), log_density


def plain(history: TrainingHistory) -> dict[str, Any]:
    """A history without its wall times."""

    def timeless(record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key != "seconds"}

    return {
        key: [timeless(record) for record in value] if key in ("steps", "stages", "evaluations") else value
        for key, value in timeless(history.to_dict()).items()
    }
