"""What `--system` can name: a protein that comes along, a structure file, or a sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from openmm_bg.systems import MolecularSystem, chignolin, from_pdb, peptide, villin

PROTEINS: dict[str, Callable[..., MolecularSystem]] = {"chignolin": chignolin, "villin": villin}
_SUFFIXES = (".pdb", ".ent")


@dataclass(frozen=True)
class Preparation:
    """What is done to a structure file before it is simulated; see `openmm_bg.systems.from_pdb`."""

    add_hydrogens: bool = False
    add_missing_atoms: bool = False
    remove_solvent: bool = False
    substitute: dict[str, str] = field(default_factory=dict)


def structure_file(system: str) -> Path | None:
    """Return the path that `system` is, or None if it is a name or a sequence."""
    path = Path(system)
    if system in PROTEINS:
        return None
    is_path = path.suffix.lower() in _SUFFIXES or len(path.parts) > 1 or path.is_file()
    return path if is_path else None


def is_folded(system: str) -> bool:
    """Whether the molecule starts as a structure that heat would destroy, and not as an extended chain."""
    return system in PROTEINS or structure_file(system) is not None


def name_of(system: str) -> str:
    """Return what the report calls the molecule."""
    path = structure_file(system)
    return system if path is None else path.name


def digest(system: str) -> str | None:
    """Return the SHA-256 of a structure file; None for what is built here.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    path = structure_file(system)
    if path is None:
        return None
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}; expected a PDB file, a sequence such as ACE-ALA-NME, or {' or '.join(PROTEINS)}."
        )
    return sha256(path.read_bytes()).hexdigest()


def build(
    system: str, forcefield: tuple[str, ...], hydrogen_mass: float | None, preparation: Preparation
) -> MolecularSystem:
    """Build what `system` names, in its energy minimum.

    Parameters
    ----------
    system : str
    forcefield : tuple of str
        OpenMM's force-field files.
    hydrogen_mass : float or None
        amu.
    preparation : Preparation
        Only for a structure file.

    Raises
    ------
    ValueError, OSError
        If it cannot be built; the message says why and what to do.
    """
    path = structure_file(system)
    if path is not None:
        return from_pdb(
            path, forcefield=forcefield, hydrogen_mass=hydrogen_mass, minimized=True,
            add_hydrogens=preparation.add_hydrogens, add_missing_atoms=preparation.add_missing_atoms,
            remove_solvent=preparation.remove_solvent, substitute=preparation.substitute or None,
        )  # fmt: skip
    if preparation != Preparation():
        raise ValueError(f"{system!r} is built complete: only a PDB file can be prepared. Leave those options out.")
    if system in PROTEINS:
        return PROTEINS[system](forcefield=forcefield, hydrogen_mass=hydrogen_mass)
    return peptide(system, forcefield=forcefield, hydrogen_mass=hydrogen_mass)
