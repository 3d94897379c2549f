"""`openmm-bg free-energy`: absolute and relative free energies of a run folder or of replica exchange."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openmm import unit
from rich.table import Table

from openmm_bg.analysis import EnergyState, FreeEnergyResult, GeneratorState, ReducedEnergies, free_energy
from openmm_bg.analysis.basins import BASINS, assign_basins
from openmm_bg.analysis.dihedrals import backbone_pairs, ramachandran_angles
from openmm_bg.analysis.readers import read_multistate, read_replica_exchange
from openmm_bg.analysis.running_difference import running_difference
from openmm_bg.analysis.states import State
from openmm_bg.analysis.surfaces import FreeEnergySurface
from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.cli.sample import load_generator
from openmm_bg.cli.sample_options import dynamics
from openmm_bg.cli.terminal import console, say
from openmm_bg.potentials import SystemPotential
from openmm_bg.report.records import Frames
from openmm_bg.report.run_folder import RunFolder, write_json

GENERATOR, TARGET = "generator", "molecule"
_BINS = 36


@dataclass(frozen=True)
class FreeEnergyOptions:
    """What `free-energy` does.

    Attributes
    ----------
    n_samples : int
        Draws of the generator.
    temperature : float or None
        K, of the states of openmm.app's replica exchange, whose files do not hold it.
    platform : str
        "auto" or the name of an OpenMM platform.
    seed : int
        Of the draws and of the bootstrap.
    """

    n_samples: int = 5000
    temperature: float | None = None
    platform: str = "auto"
    seed: int = 1


def estimate(path: Path, output: Path | None, options: FreeEnergyOptions) -> FreeEnergyResult:
    """Estimate, print and write the free energies that a folder or file holds.

    Parameters
    ----------
    path : Path
        A run folder, an .nc file of openmmtools, or energy.csv of openmm.app's replica exchange or its folder.
    output : Path or None
        The JSON file; by default free_energy.json in the folder or beside the file.
    options : FreeEnergyOptions

    Raises
    ------
    ValueError, OSError
        If there is nothing at the path that free energies can be had from.
    """
    logging.getLogger("openmm_bg").addHandler(logging.NullHandler())  # every check is printed here
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a run folder, an .nc file or an energy.csv")
    if path.is_dir() and not (path / "energy.csv").is_file():
        folder = RunFolder.open(path)
        result, entries = _of_run_folder(folder, options)
        target = output or folder.free_energy_file
    else:
        energies = (
            read_multistate(path)
            if path.suffix == ".nc"
            else read_replica_exchange(path, temperatures=options.temperature)
        )
        result, entries = free_energy(energies, rng=options.seed), {}
        target = output or (path if path.is_dir() else path.parent) / "free_energy.json"
    _show(result)
    used = result.energies
    assert used is not None
    entries["convergence"] = {
        "from": result.names[0],
        "to": result.names[-1],
        **running_difference(used, 0, len(result.names) - 1).as_json(),
    }
    write_json(target, {**result.as_json(), **entries})
    say(f"{result.verdict.sentence}\n{target}")
    return result


def _of_run_folder(folder: RunFolder, options: FreeEnergyOptions) -> tuple[FreeEnergyResult, dict[str, Any]]:
    """MBAR over the generator's draws and the chain of its moves."""
    molecule, generator = folder.read_system(), load_generator(folder)
    if not folder.chain_frames_file.exists():
        raise ValueError(
            f"{folder.chain_frames_file} is missing, so nothing could be compared with the generator's own draws; run "
            f"`openmm-bg sample {folder.path}` (in a folder of an older version after removing chain.npz)"
        )
    frames = Frames.load(folder.chain_frames_file).positions.astype(np.float64)
    drawn = generator.sample(options.n_samples, rng=np.random.default_rng([options.seed, 3]))
    pairs = backbone_pairs(molecule.topology)
    pair = int(folder.settings.get("pair", 0))

    def torsions(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        phi, psi = ramachandran_angles(positions, pairs)
        return phi[:, pair], psi[:, pair]

    with SystemPotential(molecule.system, molecule.topology, platform=options.platform) as potential:
        states: list[State] = [
            GeneratorState(GENERATOR, generator),
            EnergyState(TARGET, potential, dynamics(folder).temperature),
        ]
        result = free_energy(
            states,
            {GENERATOR: drawn, TARGET: frames},
            basins=(lambda positions: assign_basins(*torsions(positions))) if pairs else None,
            rng=options.seed,
        )
    entries: dict[str, Any] = {"generator": generator.content_hash}
    if not pairs:
        return result, entries
    used: ReducedEnergies | None = result.energies
    assert used is not None
    assert used.positions is not None
    phi, psi = torsions(used.positions)
    labels = assign_basins(phi, psi)
    kt = thermal_energy(dynamics(folder).temperature)
    populations, differences = {}, {}
    for index, basin in enumerate(BASINS):
        population = result.mean((labels == index).astype(float), TARGET)
        p = population.value
        populations[basin.name] = population.as_json()
        inside = 0.0 < p < 1.0
        differences[basin.name] = {
            "value": kt * float(np.log((1.0 - p) / p)) if inside else None,
            "error": kt * population.error / (p * (1.0 - p)) if inside else None,
        }
    surface = result.surface(phi, psi, state=TARGET, bins=_BINS)
    assert isinstance(surface, FreeEnergySurface)
    return result, entries | {
        "residue_pair": pair,
        "populations": populations,
        "free_energy_differences_kJ_per_mol": differences,
        "surface": {
            "free_energy_kJ_per_mol": surface.free_energy.tolist(),
            "error_kJ_per_mol": surface.error.tolist(),
        },
    }


def _show(result: FreeEnergyResult) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("state", "T (K)", "samples", "F (kT)", "error", "ESS", "Pareto k"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    for k, name in enumerate(result.names):
        table.add_row(
            name, f"{result.temperatures[k]:.1f}", f"{result.n_k[k]:,}", f"{result.f_k[k]:.3f}",
            f"{result.errors[0, k]:.3f}", f"{result.ess[k]:,.0f}", f"{result.pareto_k[k]:.2f}",
        )  # fmt: skip
    console.print(table)
    if result.measure is not None:
        found = result.absolute(result.names[-1])
        volume = "" if found.volume is None else f", V = {found.volume.value_in_unit(unit.nanometer**3):.4f} nm^3"
        say(f"absolute free energy of the {found.state}: {found.reduced} kT ({found.measure}{volume})")
    for check in result.verdict.checks:
        say(f"{check.status:>8}  {check.name}: {check.text}")
