"""Trajectories to train on, from molecular dynamics made here or read from the user's files, checked."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import mdtraj
import numpy as np
from numpy.typing import NDArray
from openmm import app, unit

from openmm_bg.files import write_bytes

FloatArray = NDArray[np.float64]

_FORMAT = "openmm_bg trajectory 1"
# Bonds of a molecule are well inside these bounds (nm) at any temperature of use, distances of 1-3 neighbours are not.
_SHORTEST_BOND, _LONGEST_BOND, _LONGEST_BOND_OF_HYDROGEN = 0.06, 0.25, 0.16


@dataclass(frozen=True)
class SimulationCost:
    """What a simulation cost.

    Attributes
    ----------
    seconds : float
        Wall time.
    n_steps : int
        Steps of all chains together, equilibration included; each is one evaluation of the forces.
    platform : str
        OpenMM's name of the platform.
    """

    seconds: float
    n_steps: int
    platform: str


@dataclass(frozen=True)
class TrajectoryData:
    """Frames of one or several chains of molecular dynamics of one molecule.

    Attributes
    ----------
    positions : ndarray, shape (n_chains, n_frames, n_atoms, 3), float64
        Positions in nm, each chain in the order of time.
    energies : ndarray, shape (n_chains, n_frames), float64
        Potential energies in kJ/mol.
    temperature : float
        Temperature in K.
    cost : SimulationCost
        What the frames cost to make.
    """

    positions: FloatArray
    energies: FloatArray
    temperature: float
    cost: SimulationCost

    def __post_init__(self) -> None:
        if self.positions.ndim != 4 or self.positions.shape[-1] != 3:
            raise ValueError(f"Positions have shape {self.positions.shape}; expected (n_chains, n_frames, n_atoms, 3).")
        if self.energies.shape != self.positions.shape[:2]:
            raise ValueError(f"Energies have shape {self.energies.shape}; expected {self.positions.shape[:2]}.")

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to one .npz file, which is replaced as a whole or not at all.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        description = {"format": _FORMAT, "temperature": self.temperature, "cost": asdict(self.cost)}
        write_npz(path, positions=self.positions, energies=self.energies, description=json.dumps(description))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged or something else.
        """
        stored = read_npz(path)
        try:
            description = json.loads(str(stored["description"]))
            if description["format"] != _FORMAT:
                raise ValueError(f"{path} has the format {description['format']!r}; expected {_FORMAT!r}.")
            cost = SimulationCost(**description["cost"])
            return cls(stored["positions"], stored["energies"], description["temperature"], cost)
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}; expected a file that TrajectoryData.save wrote.") from error


def load_trajectory(source: Any, topology: app.Topology) -> FloatArray:
    """Frames of a molecule from whatever holds them.

    Parameters
    ----------
    source : TrajectoryData, mdtraj.Trajectory, path, ndarray, Quantity, or sequence of trajectories or paths
        An array has the shape (n_frames, n_atoms, 3) or (n_chains, n_frames, n_atoms, 3), in nm. A path has any format
        that mdtraj reads, or is an .npz file of `TrajectoryData`. Each item of a sequence is one chain; longer chains
        are cut to the length of the shortest, with a warning.
    topology : openmm.app.Topology
        The molecule.

    Returns
    -------
    ndarray, shape (n_chains, n_frames, n_atoms, 3), float64
        Positions in nm.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If there are no frames, they are of another molecule or in another unit, or hold values that are not finite.
    """
    is_sequence = isinstance(source, Sequence) and not isinstance(source, str | bytes)
    chains = [chain for item in (source if is_sequence else [source]) for chain in _chains(item, topology)]
    lengths = [len(chain) for chain in chains]
    if not chains or min(lengths) == 0:
        raise ValueError("The trajectory is empty; expected at least one frame in every chain.")
    if len(set(lengths)) > 1:
        warnings.warn(
            f"Chains have {sorted(set(lengths))} frames; all are cut to the shortest, {min(lengths)}.", stacklevel=2
        )
    positions = np.stack([chain[: min(lengths)] for chain in chains])
    _check_frames(positions, topology)
    return positions


def write_npz(path: str | PathLike[str], **arrays: Any) -> None:
    """Write arrays to an .npz file that is replaced as a whole or, when that fails, left as it was."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    write_bytes(path, stream.getvalue())


def read_npz(path: str | PathLike[str]) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file; FileNotFoundError if it does not exist, ValueError if it is damaged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, EOFError, ValueError, OSError, AttributeError) as error:
        raise ValueError(f"{path} is truncated or not an .npz file ({error}).") from error


def _chains(source: Any, topology: app.Topology) -> list[FloatArray]:
    """Chains of one source, each of shape (n_frames, n_atoms, 3)."""
    if isinstance(source, str | PathLike):
        source = _read(Path(source), topology)
    if isinstance(source, TrajectoryData):
        source = source.positions
    if isinstance(source, mdtraj.Trajectory):
        _check_atoms(source.topology, topology)
        source = source.xyz
    if isinstance(source, unit.Quantity):
        source = source.value_in_unit(unit.nanometer)
    array = np.asarray(source)
    if array.dtype.kind != "f":
        raise ValueError(
            f"Cannot read a trajectory from {type(source).__name__} of {array.dtype}; expected frames as "
            "floating-point numbers in nm, an mdtraj.Trajectory, TrajectoryData, or the path of a trajectory file."
        )
    n_atoms = topology.getNumAtoms()
    if array.ndim not in (3, 4) or array.shape[-2:] != (n_atoms, 3):
        raise ValueError(
            f"The frames have shape {array.shape}; expected (n_frames, {n_atoms}, 3) or (n_chains, n_frames, "
            f"{n_atoms}, 3), in nm: frames of the molecule of the topology."
        )
    return list(array.astype(np.float64) if array.ndim == 4 else array.astype(np.float64)[None])


def _read(path: Path, topology: app.Topology) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no trajectory file {path}.")
    if path.suffix == ".npz":
        return TrajectoryData.load(path)
    try:
        if path.suffix in (".pdb", ".h5", ".hdf5", ".gro", ".lh5"):  # formats that say what the atoms are
            return mdtraj.load(str(path))
        return mdtraj.load(str(path), top=mdtraj.Topology.from_openmm(topology))
    except (ValueError, OSError, KeyError, RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"mdtraj cannot read {path} with the {topology.getNumAtoms()} atoms of the topology: {error}. Expected a "
            "trajectory of this molecule, solvent left out, in a format of mdtraj."
        ) from error


def _check_atoms(found: mdtraj.Topology, topology: app.Topology) -> None:
    """Raise ValueError if a trajectory's atoms are not those of the molecule, in the same order."""
    expected_atoms, found_atoms = list(topology.atoms()), list(found.atoms)
    if len(found_atoms) != len(expected_atoms):
        raise ValueError(
            f"The trajectory has {len(found_atoms)} atoms and the molecule {len(expected_atoms)}; expected frames of "
            "the same molecule, solvent left out."
        )
    for index, (ours, theirs) in enumerate(zip(expected_atoms, found_atoms, strict=True)):
        known = ours.element is not None and theirs.element is not None and theirs.element.symbol != "VS"
        if known and ours.element.symbol != theirs.element.symbol:
            raise ValueError(
                f"Atom {index} of the trajectory is {theirs} ({theirs.element.symbol}) and that of the molecule "
                f"{ours.residue.name}{ours.residue.id}-{ours.name} ({ours.element.symbol}); expected the same molecule "
                "with its atoms in the same order."
            )
    our_names, their_names = [atom.name for atom in expected_atoms], [atom.name for atom in found_atoms]
    if our_names != their_names and sorted(our_names) == sorted(their_names):
        index = next(i for i, (ours, theirs) in enumerate(zip(our_names, their_names, strict=True)) if ours != theirs)
        raise ValueError(
            f"The trajectory has the molecule's atoms in another order: atom {index} is {their_names[index]}, expected "
            f"{our_names[index]}."
        )


def _check_frames(positions: FloatArray, topology: app.Topology) -> None:
    """Raise ValueError if a value is not finite or a bond of the molecule is not bonded in some frame."""
    finite = np.isfinite(positions).all(axis=(2, 3))
    if not finite.all():
        chain, frame = np.argwhere(~finite)[0]
        raise ValueError(
            f"{np.count_nonzero(~finite)} of {finite.size} frames hold values that are not finite, the first is frame "
            f"{frame} of chain {chain}; remove them."
        )
    atoms = list(topology.atoms())
    for bond in topology.bonds():
        first, second = bond[0].index, bond[1].index
        lengths = np.linalg.norm(positions[:, :, first] - positions[:, :, second], axis=-1)
        hydrogen = app.element.hydrogen in (bond[0].element, bond[1].element)
        bad = (lengths > (_LONGEST_BOND_OF_HYDROGEN if hydrogen else _LONGEST_BOND)) | (lengths < _SHORTEST_BOND)
        if bad.any():
            chain, frame = np.argwhere(bad)[0]
            raise ValueError(
                f"In frame {frame} of chain {chain} the bonded atoms {first} ({atoms[first].name}) and {second} "
                f"({atoms[second].name}) are {lengths[chain, frame]:.3g} nm apart; expected a bond length. The frames "
                "are of another molecule, have another order of atoms, are in angstrom, or the molecule is broken over "
                "a periodic boundary (mdtraj: image_molecules)."
            )
