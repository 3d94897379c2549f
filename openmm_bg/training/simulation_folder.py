"""How a simulation is kept in a folder, so that one that was interrupted can go on."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
from numpy.typing import NDArray

from openmm_bg.training.data import read_npz, write_npz

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SimulationSettings:
    """What a simulation is determined by, in MD units; a folder holds one simulation.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    temperature: float
    timestep: float
    friction: float
    stride: int
    n_chains: int
    n_equilibration_steps: int
    minimized: bool
    seed: int | None
    system_hash: str

    def __post_init__(self) -> None:
        for name in ("temperature", "timestep", "friction", "stride", "n_chains"):
            value = getattr(self, name)
            if not (value > 0 and np.isfinite(value)):
                raise ValueError(f"The {name} is {value}; expected a positive number.")
        if self.n_equilibration_steps < 0:
            raise ValueError(f"n_equilibration_steps is {self.n_equilibration_steps}; expected 0 or more.")


def system_hash(system: openmm.System) -> str:
    """Digest of everything in a System, whichever version of OpenMM writes it."""
    text = re.sub(r'openmmVersion="[^"]*"', "", openmm.XmlSerializer.serialize(system))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class SimulationProgress:
    """Frames so far, and where each chain stands after the last of them.

    Attributes
    ----------
    positions, energies : list of ndarray
        Segments of shape (n_chains, n, n_atoms, 3) in nm and (n_chains, n) in kJ/mol.
    last : ndarray, shape (2, n_chains, n_atoms, 3), optional
        Positions and velocities after the last frame, nm and nm/ps.
    seconds : float
        Wall time so far.
    platform : str, optional
        OpenMM's name of the platform in use.
    """

    positions: list[FloatArray]
    energies: list[FloatArray]
    last: FloatArray | None = None
    seconds: float = 0.0
    platform: str | None = None

    @property
    def n_frames(self) -> int:
        """Frames of each chain so far."""
        return sum(segment.shape[1] for segment in self.energies)


class SimulationFolder:
    """A run in a folder: segments of frames, and a checkpoint that says how many of them count.

    Raises
    ------
    OSError
        If the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, settings: SimulationSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.checkpoint = folder / "checkpoint.npz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_npz(folder / "writable.npz")
            (folder / "writable.npz").unlink()
        except OSError as error:
            raise OSError(
                f"Cannot keep the simulation in {folder}: {error}. Choose a folder you can write to."
            ) from error

    def read(self) -> SimulationProgress:
        """Return what the folder holds; ValueError if that is a run with other settings, or damaged."""
        if not self.checkpoint.exists():
            return SimulationProgress([], [])
        stored = read_npz(self.checkpoint)
        try:
            description = json.loads(str(stored["description"]))
            last, found, n_segments = stored["last"], description["settings"], description["n_segments"]
            progress = SimulationProgress([], [], last, description["seconds"], description["platform"])
        except KeyError as error:
            raise ValueError(f"{self.checkpoint} lacks {error}; it was not written by simulate.") from error
        wanted = vars(self.settings)
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if self.settings.seed is None and "seed" in differing:  # any random numbers will do to go on
            differing.remove("seed")
        if differing:
            details = "; ".join(
                f"{name}: {found.get(name)} there, {wanted[name]} asked for"
                if name != "system_hash"
                else "another System"
                for name in differing
            )
            raise ValueError(
                f"{self.folder} holds a simulation with other settings ({details}). Nothing was overwritten: choose "
                "another folder, or ask for the same settings."
            )
        for index in range(n_segments):
            segment = read_npz(self._segment(index))
            progress.positions.append(segment["positions"])
            progress.energies.append(segment["energies"])
        return progress

    def write(self, progress: SimulationProgress, n_saved: int) -> int:
        """Write the segments from `n_saved` on as one, then the checkpoint; returns the number of segments."""
        progress.positions[n_saved:] = [np.concatenate(progress.positions[n_saved:], axis=1)]
        progress.energies[n_saved:] = [np.concatenate(progress.energies[n_saved:], axis=1)]
        write_npz(self._segment(n_saved), positions=progress.positions[n_saved], energies=progress.energies[n_saved])
        description = {
            "settings": vars(self.settings),
            "n_segments": n_saved + 1,
            "seconds": progress.seconds,
            "platform": progress.platform,
        }
        write_npz(self.checkpoint, last=progress.last, description=json.dumps(description))
        return n_saved + 1

    def _segment(self, index: int) -> Path:
        return self.folder / f"frames_{index:05d}.npz"
