"""The folder that one command leaves and the next one reads.

run.json            what was asked for, versions, and for each phase: finished, seconds, energy evaluations, platform
system.xml          the System
topology.pdb        its Topology and one structure
data.npz            frames of molecular dynamics (`simulate`)
simulation/         its segments, from which it can be continued
generator.bg        the trained Boltzmann generator (`train`)
training/           history and checkpoints of the training
equilibrated.npz    where the chains begin if a walk was tuned before (`sample`)
generator.npz       reweighted samples of the generator (`sample`)
chain.npz           the chain of Boltzmann generator moves and Langevin dynamics (`sample`)
chain_frames.npz    some of its configurations (`sample`)
langevin.npz        Langevin dynamics alone (`sample`)
free_energy.json    free energies by MBAR and whether to believe them (`free-energy`)
report.html         the page (`report`)
summary.json        figures for machines
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from openmm_bg.density import FloatArray
from openmm_bg.files import write_bytes
from openmm_bg.systems import MolecularSystem
from openmm_bg.systems.serialized import read_system

_FORMAT = "openmm-bg run"
_VERSION = 1


class RunFolder:
    """A folder of results.

    Parameters
    ----------
    path : str or path-like
        The folder.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run_file = self.path / "run.json"
        self.system_file = self.path / "system.xml"
        self.topology_file = self.path / "topology.pdb"
        self.simulation_folder = self.path / "simulation"
        self.data_file = self.path / "data.npz"
        self.generator_file = self.path / "generator.bg"
        self.training_folder = self.path / "training"
        self.history_file = self.training_folder / "history.json"
        self.generator_samples_file = self.path / "generator.npz"
        self.equilibrated_file = self.path / "equilibrated.npz"
        self.chain_file = self.path / "chain.npz"
        self.chain_frames_file = self.path / "chain_frames.npz"
        self.free_energy_file = self.path / "free_energy.json"
        self.langevin_file = self.path / "langevin.npz"
        self.report_file = self.path / "report.html"
        self.summary_file = self.path / "summary.json"

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Make a folder ready to be written to: a new or empty one, or one that was made here before.

        Raises
        ------
        ValueError
            If there is something else at the path; nothing is changed.
        OSError
            If it cannot be written to.
        """
        folder = cls(path)
        if folder.path.exists() and not folder.path.is_dir():
            raise ValueError(f"{folder.path} is a file; name a folder that is new, empty, or was made by openmm-bg")
        if folder.run_file.exists():
            folder.read_run()
        elif folder.path.is_dir() and any(folder.path.iterdir()):
            found = ", ".join(sorted(entry.name for entry in folder.path.iterdir())[:4])
            raise ValueError(
                f"{folder.path} holds other files ({found}) and no run.json, so it was not made by openmm-bg and "
                "is left alone; name a new or an empty folder"
            )
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder.path):
                pass
        except OSError as error:
            raise OSError(
                f"cannot write to the folder {folder.path} ({error.strerror or error}); choose another with --output"
            ) from error
        if not folder.run_file.exists():
            write_json(folder.run_file, {"format": _FORMAT, "version": _VERSION, "settings": {}, "phases": {}})
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Return a folder made by `create`; raise ValueError if there is none."""
        folder = cls(path)
        if not folder.run_file.exists():
            raise ValueError(
                f"{folder.path} is not a folder of openmm-bg (it holds no run.json); make one with "
                f"`openmm-bg simulate -o {folder.path}`"
            )
        folder.read_run()
        return folder

    def read_run(self) -> dict[str, Any]:
        """Return the contents of run.json, checked."""
        run = read_json(self.run_file)
        if run.get("format") != _FORMAT:
            raise ValueError(f"{self.run_file} was not written by openmm-bg (its format is {run.get('format')!r})")
        if run.get("version") != _VERSION:
            raise ValueError(
                f"{self.run_file} has version {run.get('version')!r}, expected {_VERSION}; start a new folder"
            )
        return run

    @property
    def settings(self) -> dict[str, Any]:
        """What the commands were asked for: sequence, temperature, seed, ..."""
        return dict(self.read_run()["settings"])

    @property
    def phases(self) -> dict[str, dict[str, Any]]:
        """What has been done, by phase, with its seconds and energy evaluations."""
        return dict(self.read_run()["phases"])

    def update_settings(self, settings: Mapping[str, Any]) -> None:
        """Add settings to run.json."""
        run = self.read_run()
        run["settings"].update(settings)
        write_json(self.run_file, run)

    def update_phase(self, name: str, **record: Any) -> None:
        """Add to the record of a phase in run.json."""
        run = self.read_run()
        run["phases"].setdefault(name, {}).update(record)
        write_json(self.run_file, run)

    def restart_phase(self, name: str) -> None:
        """Forget the record of a phase of which nothing is left."""
        run = self.read_run()
        run["phases"].pop(name, None)
        write_json(self.run_file, run)

    def asked(self, phase: str) -> dict[str, Any]:
        """Return the options that a phase was run with, empty where they were not recorded."""
        return dict(self.phases.get(phase, {}).get("asked", {}))

    def check_asked(
        self, phase: str, asked: Mapping[str, Any], remedy: str, *, unless_recorded: Mapping[str, Any] | None = None
    ) -> None:
        """Raise ValueError if a phase was run with other options than are asked for now.

        Parameters
        ----------
        phase : str
            Name of the phase.
        asked : mapping
            Options to compare; those that were not recorded count as equal.
        remedy : str
            What to do to have the phase run with these options in this folder.
        unless_recorded : mapping, optional
            What an old record that lacks an option stands for.
        """
        stored = self.asked(phase)
        if stored:
            stored = {**(unless_recorded or {}), **stored}
        differing = [
            f"{key} {stored[key]!r} (asked for: {value!r})"
            for key, value in asked.items()
            if stored.get(key, value) != value
        ]
        if differing:
            raise ValueError(
                f"in {self.path} the phase {phase!r} was run with {', '.join(differing)}. Nothing was changed: ask for "
                f"the same, name another folder with --output, or {remedy}"
            )

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall time of what runs inside to the record of a phase, also when it is interrupted."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = float(self.phases.get(name, {}).get("seconds", 0.0))
            self.update_phase(name, seconds=spent + time.perf_counter() - started)

    def is_finished(self, phase: str) -> bool:
        """Whether a phase has run to its end."""
        return bool(self.phases.get(phase, {}).get("finished"))

    def read_summary(self) -> dict[str, Any]:
        """Return the contents of summary.json, empty if it is not there yet."""
        return read_json(self.summary_file) if self.summary_file.exists() else {}

    def update_summary(self, entries: Mapping[str, Any]) -> None:
        """Add entries to summary.json."""
        write_json(self.summary_file, {**self.read_summary(), **entries})

    def write_system(self, molecule: MolecularSystem) -> None:
        """Write system.xml and topology.pdb."""
        write_bytes(self.system_file, openmm.XmlSerializer.serialize(molecule.system).encode())
        page = io.StringIO()
        app.PDBFile.writeFile(molecule.topology, molecule.positions * unit.nanometer, page, keepIds=True)
        write_bytes(self.topology_file, page.getvalue().encode())

    def read_system(self) -> MolecularSystem:
        """Read what `write_system` wrote.

        Raises
        ------
        ValueError
            If a file is missing, cannot be read, or would run code on reading (a PythonForce).
        """
        for path in (self.system_file, self.topology_file):
            if not path.exists():
                raise ValueError(f"{path} is missing; run `openmm-bg simulate -o {self.path}` first")
        system = read_system(self.system_file)
        try:
            pdb = app.PDBFile(str(self.topology_file))
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(f"cannot read {self.topology_file}: {error}") from error
        positions: FloatArray = np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        return MolecularSystem(system, pdb.topology, positions)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, with errors that name the file."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); it is damaged, or was not written here") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole or not at all; numbers that are not finite become null."""
    write_bytes(path, (json.dumps(_plain(content), indent=2, allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
