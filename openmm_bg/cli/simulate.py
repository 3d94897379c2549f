"""`openmm-bg simulate`: a molecule, and molecular dynamics or replica exchange to train on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import openmm

from openmm_bg.analysis.dihedrals import backbone_pairs, ramachandran_angles, slowest_pair
from openmm_bg.cli.defaults import DATA_TEMPERATURE, FOLDED_DATA_TEMPERATURE, FULL, MAX_TEMPERATURE
from openmm_bg.cli.molecules import Preparation, build, digest, is_folded, name_of
from openmm_bg.cli.terminal import progress_bar, say
from openmm_bg.potentials import choose_platform
from openmm_bg.potentials.platforms import n_cores
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.report.side_chains import chi1_torsions, shown_torsion
from openmm_bg.report.summary import versions
from openmm_bg.systems import MolecularSystem
from openmm_bg.training.data import TrajectoryData
from openmm_bg.training.simulate import SimulationError
from openmm_bg.training.simulate import simulate as run_dynamics

_FRAME_TIME = 0.1  # ps between frames of dynamics
_EXCHANGE_TIME = 0.5  # ps between exchanges of replicas
_FEWEST_FRAMES = 20
_FEW_EXCHANGES = 0.1
_FORCE_FIELD = ("amber99sbildn.xml", "amber99_obc.xml")
_BEFORE = {"hydrogen_mass": None, "n_replicas": 1, "max_temperature": None, "preparation": asdict(Preparation())}


@dataclass(frozen=True)
class SimulateOptions:
    """What `simulate` makes.

    Attributes
    ----------
    system : str
        "chignolin", "villin", a PDB file, or the residues of a peptide.
    forcefield : tuple of str
        OpenMM's force-field files.
    preparation : Preparation
        What is done to a PDB file first.
    temperature : float
        Of the answers (K).
    data_temperature : float or None
        Of the data that are trained on (K). None: of the answers for replicas; else that of a run that is continued,
        or one that suits the molecule.
    n_replicas : int
        1 for dynamics at one temperature, more for replica exchange.
    max_temperature : float or None
        The replicas' highest temperature (K).
    seconds : float
        Wall time of the simulation.
    timestep, friction : float
        ps and 1/ps.
    hydrogen_mass : float or None
        amu; taken from the atoms that hydrogens are bonded to.
    platform : str
        "auto" or the name of an OpenMM platform.
    seed : int
    """

    system: str = "ACE-ALA-NME"
    forcefield: tuple[str, ...] = _FORCE_FIELD
    preparation: Preparation = field(default_factory=Preparation)
    temperature: float = 300.0
    data_temperature: float | None = None
    n_replicas: int = 1
    max_temperature: float | None = None
    seconds: float = FULL.simulate
    timestep: float = 0.002
    friction: float = 1.0
    hydrogen_mass: float | None = None
    platform: str = "auto"
    seed: int = 1

    def stride(self, time_between: float) -> int:
        """Steps in a time (ps)."""
        return max(1, round(time_between / self.timestep))


def simulate(folder: RunFolder, options: SimulateOptions) -> None:
    """Write the System, its Topology and frames to train on; continue what was interrupted, repeat nothing.

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
            folder.write_system(build(options.system, options.forcefield, options.hydrogen_mass, options.preparation))
            folder.update_settings(settings)
        folder.update_phase("simulate", asked=asked)
        molecule = folder.read_system()
        data, remark = (_dynamics if options.n_replicas == 1 else _replicas)(folder, options, molecule)
        _keep(folder, options, molecule, data, remark)


def _keep(
    folder: RunFolder, options: SimulateOptions, molecule: MolecularSystem, data: TrajectoryData, remark: str
) -> None:
    """Write the data, what they cost, and which torsions the report is to show."""
    data.save(folder.data_file)
    phi, _ = ramachandran_angles(data.positions, backbone_pairs(molecule.topology))
    pair = slowest_pair(phi[0]) if phi.shape[-1] > 1 else 0
    chi = shown_torsion(data.positions, chi1_torsions(molecule.topology))
    folder.update_settings({"pair": pair, "chi": chi, "platform": data.cost.platform})
    folder.update_phase(
        "simulate", finished=True, n_evaluations=data.cost.n_steps, platform=data.cost.platform, remark=remark
    )
    n_frames = data.energies.size
    folder.update_summary(
        {
            "seed": options.seed, "platform": data.cost.platform, "n_frames": n_frames, "versions": versions(),
            "data_seconds": data.cost.seconds, "data_energy_evaluations": data.cost.n_steps,
        }
    )  # fmt: skip
    say(
        f"{n_frames:,} frames in {folder.path}: {remark}. They cost {data.cost.n_steps:,} energy evaluations and "
        f"{data.cost.seconds:,.0f} s on {data.cost.platform}."
    )


def _dynamics(folder: RunFolder, options: SimulateOptions, molecule: MolecularSystem) -> tuple[TrajectoryData, str]:
    """Run chains at one temperature, for the wall time asked for."""
    if "data_chains" not in folder.settings:
        folder.update_settings({"data_chains": n_cores()})
    temperature = float(folder.settings["data_temperature"])
    with progress_bar(f"Dynamics at {temperature:g} K") as report:
        if "data_steps" not in folder.settings:
            # The first half tells how fast the chains run side by side.
            half = _affordable_steps(molecule, options, temperature)
            speed = half / _run(molecule, folder, options, half, lambda done: report(0.5 * done, "")).cost.seconds
            steps = max(half, _whole_frames(speed * options.seconds, options.stride(_FRAME_TIME)))
            folder.update_settings({"data_steps": steps})
        n_steps = int(folder.settings["data_steps"])
        data = _run(molecule, folder, options, n_steps, lambda done: report(done, f"{n_steps:,} steps a chain"))
    nanoseconds = data.energies.size * options.stride(_FRAME_TIME) * options.timestep / 1000.0
    return data, f"{nanoseconds:.2f} ns at {temperature:g} K in {data.energies.shape[0]} chains"


def _replicas(folder: RunFolder, options: SimulateOptions, molecule: MolecularSystem) -> tuple[TrajectoryData, str]:
    """Run replica exchange for the wall time asked for; the data are those of the lowest temperature."""
    from openmm_bg.moves.replica_simulation import geometric_ladder, simulate_replicas

    logging.getLogger("openmmtools.multistate").setLevel(logging.ERROR)  # that its interface may change
    settings = folder.settings
    ladder = geometric_ladder(
        float(settings["data_temperature"]), float(settings["max_temperature"]), options.n_replicas
    )
    stride = options.stride(_EXCHANGE_TIME)
    with progress_bar(f"{len(ladder)} replicas, {ladder[0]:g} to {ladder[-1]:g} K") as report:
        try:
            made = simulate_replicas(
                molecule, ladder, folder.simulation_folder, n_frames=_FEWEST_FRAMES, max_seconds=options.seconds,
                stride=stride, timestep=options.timestep, friction=options.friction, platform=options.platform,
                progress=lambda n, seconds: report(seconds / options.seconds, f"{n:,} frames"),
            )  # fmt: skip
        except SimulationError as error:
            raise ValueError(str(error)) from error
    low, high = np.nanmin(made.fraction_accepted), np.nanmax(made.fraction_accepted)
    folder.update_summary(
        {"exchange_acceptance": made.fraction_accepted.tolist(), "replica_round_trips": made.n_round_trips}
    )
    if low < _FEW_EXCHANGES:
        say(f"[yellow]Only {low:.0%} of some exchanges were accepted: take more replicas or a lower highest one.[/]")
    nanoseconds = made.data.energies.size * stride * options.timestep / 1000.0
    remark = (
        f"{nanoseconds:.2f} ns at {ladder[0]:g} K in replica exchange of {len(ladder)} up to {ladder[-1]:g} K, "
        f"{low:.0%} to {high:.0%} of the exchanges accepted, {made.n_round_trips:,} round trips"
    )
    return made.data, remark


def _checked_settings(folder: RunFolder, options: SimulateOptions) -> dict[str, Any]:
    """Return what run.json keeps of the options; raise ValueError if the folder holds a run with others."""
    stored = folder.settings
    wanted: dict[str, Any] = {
        "name": name_of(options.system),
        "forcefield": ", ".join(options.forcefield),
        "temperature": options.temperature,
        "data_temperature": _data_temperature(options, stored),
        "timestep": options.timestep,
        "friction": options.friction,
        "seed": options.seed,
        "structure": digest(options.system),
        "hydrogen_mass": options.hydrogen_mass,
        "n_replicas": options.n_replicas,
        "max_temperature": (options.max_temperature or MAX_TEMPERATURE) if options.n_replicas > 1 else None,
        "preparation": asdict(options.preparation),
    }
    found = {**_BEFORE, **stored} if stored else {}
    differing = [
        f"{key} {found[key]!r} (asked for: {value!r})"
        for key, value in wanted.items()
        if found.get(key, value) != value
    ]
    if differing:
        raise ValueError(
            f"{folder.path} holds a run with {', '.join(differing)}. Nothing was changed: name another folder with "
            "--output, or ask for the same."
        )
    _check_numbers(options, wanted)
    return wanted


def _data_temperature(options: SimulateOptions, stored: dict[str, Any]) -> float:
    if options.data_temperature is not None:
        return options.data_temperature
    if "data_temperature" in stored:
        return float(stored["data_temperature"])
    if options.n_replicas > 1:
        return options.temperature
    return FOLDED_DATA_TEMPERATURE if is_folded(options.system) else DATA_TEMPERATURE


def _check_numbers(options: SimulateOptions, wanted: dict[str, Any]) -> None:
    numbers = {**vars(options), **wanted}
    for key in (
        "temperature",
        "data_temperature",
        "max_temperature",
        "timestep",
        "friction",
        "hydrogen_mass",
        "seconds",
    ):
        value = numbers[key]
        if value is not None and not (np.isfinite(value) and value > 0.0):
            raise ValueError(f"the {key.replace('_', ' ')} is {value}; give a positive number")
    if options.n_replicas == 1 and options.max_temperature is not None:
        raise ValueError("--max-temperature is that of replicas; ask for several with --replicas, or leave it out")
    if options.n_replicas > 1 and wanted["max_temperature"] <= wanted["data_temperature"]:
        raise ValueError(
            f"the replicas go from {wanted['data_temperature']:g} to {wanted['max_temperature']:g} K; give a higher "
            "--max-temperature"
        )


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
            float(folder.settings["data_temperature"]),
            n_steps=n_steps,
            stride=options.stride(_FRAME_TIME),
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


def _affordable_steps(molecule: MolecularSystem, options: SimulateOptions, temperature: float) -> int:
    """Steps of each chain in half of the wall time asked for, by a short measurement of one chain."""
    choice = choose_platform(
        molecule.system, molecule.positions, options.platform, task="dynamics", n_concurrent=n_cores()
    )
    integrator = openmm.LangevinMiddleIntegrator(temperature, options.friction, options.timestep)
    context = choice.create_context(molecule.system, integrator)
    context.setPositions(molecule.positions)
    stride = options.stride(_FRAME_TIME)
    integrator.step(stride)
    started, n_steps = time.perf_counter(), 0
    while time.perf_counter() - started < min(0.5, 0.05 * options.seconds):
        integrator.step(stride)
        n_steps += stride
    return _whole_frames(0.5 * options.seconds * n_steps / (time.perf_counter() - started), stride)


def _whole_frames(n_steps: float, stride: int) -> int:
    return max(_FEWEST_FRAMES, int(n_steps / stride)) * stride
