"""Dynamics from a structure: relaxed, settled at the temperature, then watched in several copies; resumable.

The copies run one after another in this process, for the noise of the Reference platform comes from one generator.
Each is advanced in segments that begin from stored positions and velocities with random numbers of their own, so that a
run that was interrupted between two of them gives what it would have given.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import openmm
import safetensors
from safetensors.numpy import save

from openmm_bg.analysis.superposition import Indices, Superposed
from openmm_bg.density import FloatArray
from openmm_bg.files import write_bytes
from openmm_bg.potentials.platforms import PlatformChoice, choose_platform

Progress = Callable[[int, int], None]

_N_SEGMENTS = 10  # of each copy: all structures advance together, and little is lost on an interrupt
_CONSTRAINT_TOLERANCE = 1e-6
_MINIMIZER_TOLERANCE, _MINIMIZER_ITERATIONS = 1.0, 5000  # kJ/mol/nm, root mean square
_LARGEST_SEED = 2**31 - 2


@dataclass(frozen=True)
class Dynamics:
    """Settings of Langevin dynamics, in MD units."""

    temperature: float
    timestep: float
    friction: float
    n_equilibration_steps: int
    stride: int
    seed: int | None


@dataclass
class Copy:
    """One copy so far: its deviations from the settled structure, and where it stands."""

    deviations: FloatArray
    positions: FloatArray
    velocities: FloatArray


@dataclass
class Stay:
    """A structure and what became of it.

    Attributes
    ----------
    start : ndarray, shape (n_atoms, 3)
        nm.
    index : int
        Its place among all structures; with the seed it decides the random numbers.
    settled : ndarray, shape (n_atoms, 3), optional
        Minimised, equilibrated, minimised again; None if that failed.
    copies : list of Copy
        Those that were begun.
    failure : str
        Why there is nothing more, or empty.
    """

    start: FloatArray
    index: int
    settled: FloatArray | None = None
    copies: list[Copy] = field(default_factory=list)
    failure: str = ""


class StayRunner:
    """Settles structures and watches copies of them.

    Parameters
    ----------
    system : openmm.System
    atoms : ndarray of int
        Those whose deviation counts.
    dynamics : Dynamics
    example : ndarray, shape (n_atoms, 3)
        A sane structure in nm, to time platforms with.
    platform : str
        "auto" or the name of one.
    folder : path, optional
        What was simulated there from the same structures, System and settings is taken up.
    max_seconds : float, optional
        No segment begins later than this after the runner was made.
    """

    def __init__(
        self,
        system: openmm.System,
        atoms: Indices,
        dynamics: Dynamics,
        *,
        example: FloatArray,
        platform: str = "auto",
        folder: Path | None = None,
        max_seconds: float | None = None,
    ) -> None:
        self.system, self.atoms, self.dynamics, self.folder = system, atoms, dynamics, folder
        self.choice: PlatformChoice = choose_platform(system, example, platform, task="dynamics")
        self._deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
        settings = json.dumps([vars(dynamics), atoms.tolist(), openmm.XmlSerializer.serialize(system)])
        self._digest = sha256(settings.encode())
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def settle(self, starts: Sequence[FloatArray]) -> list[Stay]:
        """Minimise, equilibrate and minimise again each structure (nm); one that blows up has a `failure`."""
        stays = [self._read(np.asarray(start, dtype=np.float64), index) for index, start in enumerate(starts)]
        for stay in stays:
            if stay.settled is None and not stay.failure and time.monotonic() < self._deadline:
                with self._recorded(stay):
                    stay.settled = self._settle(stay.start, self._seeds(stay.index, 0, 0))
        return stays

    def watch(self, stays: Sequence[Stay], n_copies: int, n_frames: int, progress: Progress | None = None) -> None:
        """Bring copies of settled structures to a number of frames, `dynamics.stride` steps apart, all side by side.

        `progress` is called with the steps done and the steps in all.
        """
        for stay, number, target in _schedule(stays, n_copies, n_frames):
            if time.monotonic() > self._deadline:
                break
            if stay.settled is not None and not stay.failure:
                self._advance(stay, stay.settled, number, target)
            if progress is not None:
                whole = [one for one in stays if one.settled is not None and not one.failure]
                done = sum(min(len(copy.deviations), n_frames) for one in whole for copy in one.copies[:n_copies])
                progress(done * self.dynamics.stride, len(whole) * n_copies * n_frames * self.dynamics.stride)

    def _advance(self, stay: Stay, settled: FloatArray, number: int, n_frames: int) -> None:
        if number == len(stay.copies):
            stay.copies.append(Copy(np.empty(0), settled, np.empty((0, 3))))
        copy = stay.copies[number]
        if len(copy.deviations) < n_frames:
            with self._recorded(stay):
                self._watch(settled, copy, n_frames, self._seeds(stay.index, number + 1, len(copy.deviations)))

    @contextmanager
    def _recorded(self, stay: Stay) -> Iterator[None]:
        """Note a failure of the dynamics, and write the structure's file; on an interrupt the file stays as it was."""
        try:
            yield
        except openmm.OpenMMException as error:
            stay.failure = str(error)
        if self.folder is not None:
            self._write(stay)

    def _settle(self, start: FloatArray, seeds: tuple[int, int]) -> FloatArray:
        context = self._context(start, seeds[0])
        context.applyConstraints(_CONSTRAINT_TOLERANCE)
        openmm.LocalEnergyMinimizer.minimize(context, _MINIMIZER_TOLERANCE, _MINIMIZER_ITERATIONS)
        context.setVelocitiesToTemperature(self.dynamics.temperature, seeds[1])
        context.getIntegrator().step(self.dynamics.n_equilibration_steps)
        _positions(context)
        openmm.LocalEnergyMinimizer.minimize(context, _MINIMIZER_TOLERANCE, _MINIMIZER_ITERATIONS)
        return _positions(context)

    def _watch(self, settled: FloatArray, copy: Copy, n_frames: int, seeds: tuple[int, int]) -> None:
        context = self._context(copy.positions, seeds[0])
        if len(copy.velocities):
            context.setVelocities(copy.velocities)
        else:
            context.setVelocitiesToTemperature(self.dynamics.temperature, seeds[1])
        frames = []
        for _ in range(n_frames - len(copy.deviations)):
            context.getIntegrator().step(self.dynamics.stride)
            frames.append(_positions(context))
        deviations = Superposed(np.stack(frames), self.atoms).from_one(Superposed(settled[None], self.atoms), 0)
        velocities = context.getState(velocities=True).getVelocities(asNumpy=True)._value
        copy.velocities = np.array(velocities, dtype=np.float64)
        copy.positions = frames[-1]
        copy.deviations = np.concatenate([copy.deviations, deviations])

    def _context(self, positions: FloatArray, seed: int) -> openmm.Context:
        d = self.dynamics
        integrator = openmm.LangevinMiddleIntegrator(d.temperature, d.friction, d.timestep)
        integrator.setRandomNumberSeed(seed)
        integrator.setConstraintTolerance(_CONSTRAINT_TOLERANCE)
        context = self.choice.create_context(self.system, integrator)
        context.setPositions(positions)
        return context

    def _seeds(self, *place: int) -> tuple[int, int]:
        entropy = None if self.dynamics.seed is None else (self.dynamics.seed, *place)
        first, second = np.random.SeedSequence(entropy).generate_state(2) % _LARGEST_SEED + 1
        return int(first), int(second)

    def _path(self, start: FloatArray) -> Path:
        digest = self._digest.copy()
        digest.update(start.tobytes())
        assert self.folder is not None
        return self.folder / f"stay_{digest.hexdigest()[:20]}.safetensors"

    def _read(self, start: FloatArray, index: int) -> Stay:
        """What the folder holds of a structure, or the structure as it is."""
        stay = Stay(start, index)
        if self.folder is None or not (path := self._path(start)).exists():
            return stay
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
                stay.failure = (file.metadata() or {})["failure"]
                stay.settled = stored.get("settled")
                while f"deviations_{len(stay.copies)}" in stored:
                    number = len(stay.copies)
                    parts = (stored[f"{name}_{number}"] for name in ("deviations", "positions", "velocities"))
                    stay.copies.append(Copy(*parts))
        except (safetensors.SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is damaged: {error}. Remove it to simulate this structure anew.") from error
        return stay

    def _write(self, stay: Stay) -> None:
        """Replace the file of a structure."""
        arrays = {} if stay.settled is None else {"settled": stay.settled}
        for number, copy in enumerate(stay.copies):
            if len(copy.deviations):
                arrays |= {f"{name}_{number}": np.ascontiguousarray(value) for name, value in vars(copy).items()}
        write_bytes(self._path(stay.start), save(arrays, metadata={"failure": stay.failure}))


def _schedule(stays: Sequence[Stay], n_copies: int, n_frames: int) -> Iterator[tuple[Stay, int, int]]:
    """Structure, copy, and the number of frames that it is to reach next."""
    for part in range(1, _N_SEGMENTS + 1):
        for stay in stays:
            for number in range(n_copies):
                yield stay, number, math.ceil(n_frames * part / _N_SEGMENTS)


def _positions(context: openmm.Context) -> FloatArray:
    x = np.array(context.getState(positions=True).getPositions(asNumpy=True)._value, dtype=np.float64)
    if not np.isfinite(x).all():
        raise openmm.OpenMMException("positions are no longer finite")
    return x
