"""`openmm-bg simulate`: a molecule and molecular dynamics at high temperature, to train on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import openmm

from openmm_bg.analysis.dihedrals import backbone_pairs, ramachandran_angles, slowest_pair
from openmm_bg.cli.defaults import FULL
from openmm_bg.cli.terminal import progress_bar, say
from openmm_bg.potentials import choose_platform
from openmm_bg.potentials.platforms import n_cores
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.report.summary import versions
from openmm_bg.systems import MolecularSystem, from_pdb, peptide
from openmm_bg.training.data import TrajectoryData
from openmm_bg.training.simulate import SimulationError
from openmm_bg.training.simulate import simulate as run_dynamics

_STRIDE = 50  # steps between frames: 0.1 ps
_FEWEST_FRAMES = 20
_FORCE_FIELD = ("amber99sbildn.xml", "amber99_obc.xml")


@dataclass(frozen=True)
class SimulateOptions:
    """What `simulate` makes.

    Attributes
    ----------
    sequence : str
        Residues of a peptide; ignored if `pdb` is given.
    pdb : Path or None
        A structure with hydrogens.
    forcefield : tuple of str
        OpenMM's force-field files.
    temperature, data_temperature : float
        Of the answers, and of the dynamics that is trained on (K).
    seconds : float
        Wall time of the dynamics.
    timestep, friction : float
        ps and 1/ps.
    platform : str
        "auto" or the name of an OpenMM platform.
    seed : int
    """

    sequence: str = "ACE-ALA-NME"
    pdb: Path | None = None
    forcefield: tuple[str, ...] = _FORCE_FIELD
    temperature: float = 300.0
    data_temperature: float = 700.0
    seconds: float = FULL.simulate
    timestep: float = 0.002
    friction: float = 1.0
    platform: str = "auto"
    seed: int = 1


def simulate(folder: RunFolder, options: SimulateOptions) -> None:
    """Write the System, its Topology and frames of dynamics; continue what was interrupted, repeat nothing.

    Raises
    ------
    ValueError
        If the folder holds another molecule or another simulation, or the dynamics blows up.
    """
    settings = _checked_settings(folder, options)
    asked = {"seconds": options.seconds}
    folder.check_asked("simulate", asked, "remove it to start anew")
    if folder.is_finished("simulate") and folder.data_file.exists():
        say(f"The data are there: {folder.data_file}")
        return
    with folder.timed("simulate"):
        if not (folder.system_file.exists() and folder.topology_file.exists()):
            folder.write_system(_build(options))
            folder.update_settings(settings)
        folder.update_phase("simulate", asked=asked)
        _simulate(folder, options, folder.read_system())


def _simulate(folder: RunFolder, options: SimulateOptions, molecule: MolecularSystem) -> None:
    if "data_chains" not in folder.settings:
        folder.update_settings({"data_chains": n_cores()})
    with progress_bar(f"Dynamics at {options.data_temperature:g} K") as report:
        if "data_steps" not in folder.settings:
            # The first half tells how fast the chains run side by side.
            half = _affordable_steps(molecule, options)
            speed = half / _run(molecule, folder, options, half, lambda done: report(0.5 * done, "")).cost.seconds
            folder.update_settings({"data_steps": max(half, _whole_frames(speed * options.seconds))})
        n_steps = int(folder.settings["data_steps"])
        data = _run(molecule, folder, options, n_steps, lambda done: report(done, f"{n_steps:,} steps a chain"))
    data.save(folder.data_file)
    n_frames = data.energies.size
    phi, _ = ramachandran_angles(data.positions, backbone_pairs(molecule.topology))
    pair = slowest_pair(phi[0]) if phi.shape[-1] > 1 else 0
    folder.update_settings({"pair": pair, "platform": data.cost.platform})
    nanoseconds = n_frames * _STRIDE * options.timestep / 1000.0
    folder.update_phase(
        "simulate", finished=True, n_evaluations=data.cost.n_steps, platform=data.cost.platform,
        remark=f"{nanoseconds:.2f} ns at {options.data_temperature:g} K in {data.energies.shape[0]} chains",
    )  # fmt: skip
    folder.update_summary(
        {"seed": options.seed, "platform": data.cost.platform, "n_frames": n_frames, "versions": versions()}
    )
    say(f"{n_frames:,} frames ({nanoseconds:.2f} ns) in {folder.path}")


def _build(options: SimulateOptions) -> MolecularSystem:
    if options.pdb is None:
        return peptide(options.sequence, forcefield=options.forcefield)
    return from_pdb(options.pdb, forcefield=options.forcefield, minimized=True)


def _checked_settings(folder: RunFolder, options: SimulateOptions) -> dict[str, Any]:
    """Return what run.json keeps of the options; raise ValueError if the folder holds a run with others."""
    name = options.sequence if options.pdb is None else options.pdb.name
    wanted: dict[str, Any] = {
        "name": name,
        "forcefield": ", ".join(options.forcefield),
        "temperature": options.temperature,
        "data_temperature": options.data_temperature,
        "timestep": options.timestep,
        "friction": options.friction,
        "seed": options.seed,
        "structure": None if options.pdb is None else sha256(options.pdb.read_bytes()).hexdigest(),
    }
    stored = folder.settings
    differing = [
        f"{key} {stored[key]!r} (asked for: {value!r})"
        for key, value in wanted.items()
        if stored.get(key, value) != value
    ]
    if differing:
        raise ValueError(
            f"{folder.path} holds a run with {', '.join(differing)}. Nothing was changed: name another folder with "
            "--output, or ask for the same."
        )
    for key in ("temperature", "data_temperature", "timestep", "friction", "seconds"):
        if not (np.isfinite(getattr(options, key)) and getattr(options, key) > 0.0):
            raise ValueError(f"the {key.replace('_', ' ')} is {getattr(options, key)}; give a positive number")
    return wanted


def _run(
    molecule: MolecularSystem,
    folder: RunFolder,
    options: SimulateOptions,
    n_steps: int,
    report: Callable[[float], None],
) -> TrajectoryData:
    try:
        return run_dynamics(
            molecule,
            options.data_temperature,
            n_steps=n_steps,
            stride=_STRIDE,
            timestep=options.timestep,
            friction=options.friction,
            n_chains=int(folder.settings["data_chains"]),
            platform=options.platform,
            seed=options.seed,
            folder=folder.simulation_folder,
            progress=lambda done, total: report(done / total),
        )
    except SimulationError as error:
        raise ValueError(str(error)) from error


def _affordable_steps(molecule: MolecularSystem, options: SimulateOptions) -> int:
    """Steps of each chain in half of the wall time asked for, by a short measurement of one chain."""
    choice = choose_platform(
        molecule.system, molecule.positions, options.platform, task="dynamics", n_concurrent=n_cores()
    )
    integrator = openmm.LangevinMiddleIntegrator(options.data_temperature, options.friction, options.timestep)
    context = choice.create_context(molecule.system, integrator)
    context.setPositions(molecule.positions)
    integrator.step(_STRIDE)
    started, n_steps = time.perf_counter(), 0
    while time.perf_counter() - started < min(0.5, 0.05 * options.seconds):
        integrator.step(_STRIDE)
        n_steps += _STRIDE
    return _whole_frames(0.5 * options.seconds * n_steps / (time.perf_counter() - started))


def _whole_frames(n_steps: float) -> int:
    return max(_FEWEST_FRAMES, int(n_steps / _STRIDE)) * _STRIDE
