"""One structure out of a PDB file: one of its models, one location of each atom."""

from __future__ import annotations

import io
import warnings
from collections import defaultdict
from os import PathLike
from pathlib import Path

from openmm import app

_COORDINATES = ("ATOM  ", "HETATM")
_ATOMS = (*_COORDINATES, "ANISOU")
_LABEL = 16  # column of the label of an alternate location


def read_pdb(path: str | PathLike[str], model: int | None = None) -> app.PDBFile:
    """Read a structure; of alternate locations those that are occupied most are taken, residue by residue.

    Parameters
    ----------
    path : str or path
    model : int, optional
        Which model of the file, counted from 1; by default the first one, with a warning if there are several.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, holds no atoms, or has no such model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}; expected a PDB file.")
    try:
        lines = _one_location(path, _one_model(path, Path(path).read_text().splitlines(), model))
        pdb = app.PDBFile(io.StringIO("\n".join(lines) + "\n"))
    except (UnicodeDecodeError, IndexError, KeyError, AttributeError) as error:  # AttributeError: no atom at all
        raise ValueError(
            f"{path} cannot be read as a PDB file; expected ATOM records of one molecule ({error})."
        ) from error
    if pdb.topology.getNumAtoms() == 0:
        raise ValueError(f"{path} holds no atoms; expected a PDB file of one molecule.")
    return pdb


def _one_model(path: str | PathLike[str], lines: list[str], model: int | None) -> list[str]:
    """The lines of one model and those outside any."""
    starts = [i for i, line in enumerate(lines) if line.startswith("MODEL ")]
    if model is not None and not 1 <= model <= max(len(starts), 1):
        raise ValueError(f"model={model}, but {path} holds {max(len(starts), 1)} models, counted from 1.")
    if model is None and len(starts) > 1:
        warnings.warn(
            f"{path} holds {len(starts)} models; the first is read. Choose another with model=2 and so on.",
            stacklevel=4,
        )
    if not starts:
        return lines
    kept, current = [], 0
    for line in lines:
        if line.startswith("MODEL "):
            current += 1
            inside = True
        elif line.startswith("ENDMDL"):
            inside = False
        elif current == 0 or not inside or current == (model or 1):
            kept.append(line)
    return kept


def _one_location(path: str | PathLike[str], lines: list[str]) -> list[str]:
    """The lines with one location of each residue, its label removed."""
    occupancies: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    names: dict[str, str] = {}
    for line in lines:
        if line.startswith(_COORDINATES) and line[_LABEL] != " ":
            residue = line[21:27]
            names.setdefault(residue, f"{line[17:20].strip()}{line[22:27].strip()}")
            occupancies[residue][line[_LABEL]].append(float(line[54:60].strip() or 1.0))
    if not occupancies:
        return lines
    chosen = {
        residue: min(found, key=lambda label: (-sum(found[label]) / len(found[label]), label))
        for residue, found in occupancies.items()
    }
    several = [f"{names[residue]} ({chosen[residue]})" for residue, found in occupancies.items() if len(found) > 1]
    if several:
        warnings.warn(
            f"{path} holds alternate locations; of each residue the most occupied one is read: {', '.join(several)}.",
            stacklevel=4,
        )
    kept = []
    for line in lines:
        if line.startswith(_ATOMS) and line[_LABEL] != " ":
            if line[_LABEL] != chosen.get(line[21:27]):
                continue
            line = line[:_LABEL] + " " + line[_LABEL + 1 :]
        kept.append(line)
    return kept
