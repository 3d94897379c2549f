"""Langevin dynamics that makes training data: several chains side by side, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from openmm_bg.potentials.platforms import choose_platform, n_cores
from openmm_bg.systems import MolecularSystem
from openmm_bg.systems.molecular_system import minimize
from openmm_bg.training.chain_process import ChainError, ChainProcess
from openmm_bg.training.data import SimulationCost, TrajectoryData
from openmm_bg.training.simulation_folder import SimulationFolder, SimulationProgress, SimulationSettings, system_hash

FloatArray = NDArray[np.float64]

_SECONDS_PER_SEGMENT, _SECONDS_PER_SAVE = 1.0, 10.0


class SimulationError(RuntimeError):
    """Molecular dynamics that could not go on."""


def simulate(
    molecule: MolecularSystem | tuple[openmm.System, FloatArray],
    temperature: float | unit.Quantity,
    *,
    n_steps: int,
    stride: int,
    timestep: float | unit.Quantity = 0.002,
    friction: float | unit.Quantity = 1.0,
    n_chains: int = 2,
    n_equilibration_steps: int = 1000,
    minimized: bool = False,
    platform: str = "auto",
    seed: int | None = None,
    folder: str | PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrajectoryData:
    """Run Langevin dynamics at one temperature, high ones included, from one structure.

    The chains differ by their random numbers and run side by side, each in a process of its own.

    Parameters
    ----------
    molecule : MolecularSystem or (openmm.System, ndarray)
        What to simulate; positions of shape (n_atoms, 3) in nm.
    temperature : float or Quantity
        Temperature (K).
    n_steps : int
        Steps of each chain, a multiple of `stride`.
    stride : int
        Steps between frames.
    timestep, friction : float or Quantity
        Of the LangevinMiddleIntegrator (ps, 1/ps).
    n_chains : int
        Number of chains; one per core is fastest.
    n_equilibration_steps : int
        Steps of each chain before its first frame is due, left out.
    minimized : bool
        Minimise the energy first.
    platform : str
        "auto" for the fastest by a short measurement, or one of OpenMM's platforms.
    seed : int, optional
        The same seed gives the same chains on the Reference platform, if the run is not interrupted.
    folder : path, optional
        Where to keep the run. A run that was interrupted (Ctrl-C) goes on from there; a finished one is read, or
        extended if `n_steps` has grown. Positions and velocities are carried over, random numbers are drawn anew.
    progress : callable, optional
        Called with the steps done and the steps in all, of all chains together.

    Returns
    -------
    TrajectoryData
        n_steps // stride frames of each chain.

    Raises
    ------
    ValueError
        If an argument is out of range, or the folder holds a run with other settings.
    SimulationError
        If the dynamics blows up or a process dies; what came before stays in the folder.
    OSError
        If the folder cannot be written; what it held before is intact.
    """
    system, start = (molecule.system, molecule.positions) if isinstance(molecule, MolecularSystem) else molecule
    positions = np.asarray(start, dtype=np.float64)
    _check_positions(system, positions)
    settings = SimulationSettings(
        temperature=_value(temperature, unit.kelvin),
        timestep=_value(timestep, unit.picosecond),
        friction=_value(friction, unit.picosecond**-1),
        stride=stride,
        n_chains=n_chains,
        n_equilibration_steps=n_equilibration_steps,
        minimized=minimized,
        seed=seed,
        system_hash=system_hash(system),
    )
    if n_steps < stride or n_steps % stride:
        raise ValueError(f"n_steps is {n_steps}; expected a multiple of the stride, {stride}.")
    store = None if folder is None else SimulationFolder(Path(folder), settings)
    run = _Run(settings, system, positions, platform, store)
    run.advance(n_steps // stride, progress)
    return run.data(n_steps // stride)


def _value(value: float | unit.Quantity, in_unit: unit.Unit) -> float:
    return float(value.value_in_unit(in_unit) if isinstance(value, unit.Quantity) else value)


def _check_positions(system: openmm.System, positions: FloatArray) -> None:
    n_atoms = system.getNumParticles()
    if positions.shape != (n_atoms, 3) or not np.isfinite(positions).all():
        raise ValueError(f"Positions have shape {positions.shape}; expected ({n_atoms}, 3) finite numbers, in nm.")


class _Run:
    """Chains in processes, advanced together in segments of about a second."""

    def __init__(
        self,
        settings: SimulationSettings,
        system: openmm.System,
        positions: FloatArray,
        platform: str,
        store: SimulationFolder | None,
    ) -> None:
        self.settings = settings
        self.system = system
        self.start = positions
        self.platform = platform
        self.store = store
        self.progress = store.read() if store is not None else SimulationProgress([], [])
        self.n_saved = len(self.progress.energies)

    def data(self, n_frames: int) -> TrajectoryData:
        done = self.progress
        n_steps = self.settings.n_chains * (done.n_frames * self.settings.stride + self.settings.n_equilibration_steps)
        return TrajectoryData(
            np.concatenate(done.positions, axis=1)[:, :n_frames],
            np.concatenate(done.energies, axis=1)[:, :n_frames],
            self.settings.temperature,
            SimulationCost(done.seconds, n_steps, str(done.platform)),
        )

    def advance(self, n_frames: int, report: Callable[[int, int], None] | None) -> None:
        """Go on until there are `n_frames` frames, saving now and then, and whatever ends it."""
        if self.progress.n_frames >= n_frames:
            return
        begin = time.perf_counter()
        with ExitStack() as stack:
            stack.callback(self._save)
            chains = self._start_chains(stack)
            segment, saved = 1, begin
            while self.progress.n_frames < n_frames:
                segment_begin = time.perf_counter()
                self._advance_segment(chains, min(segment, n_frames - self.progress.n_frames))
                now = time.perf_counter()
                self.progress.seconds += now - begin
                begin = now
                segment = max(1, int(segment * min(4.0, _SECONDS_PER_SEGMENT / (now - segment_begin))))
                if report is not None:
                    steps = self.settings.n_chains * self.settings.stride
                    report(steps * self.progress.n_frames, steps * n_frames)
                if now - saved > _SECONDS_PER_SAVE:
                    self._save()
                    saved = now

    def _save(self) -> None:
        if self.store is not None and len(self.progress.energies) > self.n_saved:
            self.n_saved = self.store.write(self.progress, self.n_saved)

    def _start_chains(self, stack: ExitStack) -> list[ChainProcess]:
        settings, done = self.settings, self.progress
        start = minimize(self.system, self.start) if settings.minimized and done.last is None else self.start
        choice = choose_platform(
            self.system, start, self.platform, task="dynamics", n_concurrent=min(settings.n_chains, n_cores())
        )
        done.platform = choice.name
        # A run that goes on must not repeat its random numbers: its length is part of the seed.
        entropy = None if settings.seed is None else (settings.seed, done.n_frames)
        seeds = np.random.SeedSequence(entropy).generate_state(2 * settings.n_chains) % (2**31 - 2) + 1
        serialised = openmm.XmlSerializer.serialize(self.system)
        return [
            stack.enter_context(
                ChainProcess(
                    system=serialised,
                    positions=start if done.last is None else done.last[0, chain],
                    velocities=None if done.last is None else done.last[1, chain],
                    temperature=settings.temperature,
                    friction=settings.friction,
                    timestep=settings.timestep,
                    seeds=(int(seeds[2 * chain]), int(seeds[2 * chain + 1])),
                    platform=choice.name,
                    properties=choice.properties,
                )
            )
            for chain in range(settings.n_chains)
        ]

    def _advance_segment(self, chains: list[ChainProcess], n_frames: int) -> None:
        done, settings = self.progress, self.settings
        frames = []
        for index, chain in enumerate(chains):
            with self._explained(index):
                chain.start(n_frames, settings.stride, settings.n_equilibration_steps if done.last is None else 0)
        for index, chain in enumerate(chains):
            with self._explained(index):
                frames.append(chain.finish())
        done.positions.append(np.stack([part["positions"] for part in frames]))
        done.energies.append(np.stack([part["energies"] for part in frames]))
        done.last = np.stack([[part["positions"][-1], part["velocities"]] for part in frames], axis=1)

    @contextmanager
    def _explained(self, chain: int) -> Iterator[None]:
        try:
            yield
        except ChainError as error:
            settings = self.settings
            raise SimulationError(
                f"Chain {chain} failed after step {self.progress.n_frames * settings.stride} at "
                f"{settings.temperature:g} K with a timestep of {1000 * settings.timestep:g} fs: {error}. If it blew "
                "up, use a smaller timestep or a lower temperature, or minimise the structure first (minimized=True)."
            ) from error
