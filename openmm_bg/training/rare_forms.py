"""Frames in which a torsion that the generator holds rigid has another form, and what that form is."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import openmm.app
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmm_bg.coordinates.chirality import signed_volumes, stereocentres
from openmm_bg.coordinates.internal import Internal
from openmm_bg.density import FloatArray
from openmm_bg.generator import BoltzmannGenerator

_SHOWN = 5


def regular_frames(
    generator: BoltzmannGenerator, positions: FloatArray, internal: Internal
) -> tuple[Tensor, list[str]]:
    """Frames whose narrow torsions are within 90 degrees of their circular median, and why the others are not.

    Parameters
    ----------
    generator : BoltzmannGenerator
    positions : ndarray, shape (n, n_atoms, 3), nm
    internal : Internal
        Of these positions.

    Returns
    -------
    regular : Tensor of bool, shape (n,)
    warnings : list of str
        One that says how many frames are left out, which residues have which other form and in how many frames, and
        where to look first; none if all frames are regular.
    """
    rows = generator.features.linear_torsion_rows
    torsions = internal.torsions[:, torch.as_tensor(rows)]
    centre = torch.atan2(torsions.sin().median(0).values, torsions.cos().median(0).values)
    offset = torch.remainder(torsions - centre + math.pi, 2.0 * math.pi) - math.pi
    other_form = offset.abs() >= 0.5 * math.pi
    regular = ~other_form.any(1)
    left_out = np.flatnonzero(~regular.numpy())
    if not left_out.size:
        return regular, []
    reasons = _reasons(generator, positions, left_out, other_form.numpy()[left_out], torsions.numpy()[left_out])
    frames = ", ".join(map(str, left_out[:_SHOWN])) + (" and so on" if left_out.size > _SHOWN else "")
    return regular, [
        f"{left_out.size} of {len(regular)} frames are left out: a torsion that the generator holds rigid has another "
        f"form in them than in most frames, which it does not propose. {' '.join(reasons)} They are frames {frames}, "
        "counted from 0 through all chains."
    ]


def frames_of_form(generator: BoltzmannGenerator, internal: Internal, centre: Tensor) -> Tensor:
    """Mask of frames whose narrow torsions are within 90 degrees of `centre` (rad): those a generator proposes."""
    torsions = internal.torsions[:, torch.as_tensor(generator.features.linear_torsion_rows, device=centre.device)]
    offset = torch.remainder(torsions - centre + math.pi, 2.0 * math.pi) - math.pi
    return (offset.abs() < 0.5 * math.pi).all(1)


def _reasons(
    generator: BoltzmannGenerator,
    positions: FloatArray,
    left_out: NDArray[np.int64],
    other_form: NDArray[np.bool_],
    torsions: FloatArray,
) -> list[str]:
    """One sentence for each kind of form, with the number of frames of each residue that has it."""
    zmatrix = generator.coordinates.zmatrix
    atoms = list(generator.topology.atoms())
    centres = stereocentres(generator.topology)
    volumes = signed_volumes(positions, centres)
    usual = np.sign(np.median(volumes, axis=0))
    inverted = np.sign(volumes[left_out]) != usual
    mirrored, turned, others = Counter[str](), Counter[str](), Counter[str]()
    mirrored.update({centre.name: int(n) for centre, n in zip(centres, inverted.sum(0), strict=True) if n})
    of_centre = {centre.atom: column for column, centre in enumerate(centres)}
    mirror_image = inverted.all(1) & (len(centres) > 0)
    elsewhere: dict[str, NDArray[np.bool_]] = {}
    for column, row in enumerate(generator.features.linear_torsion_rows):
        in_frames = other_form[:, column]
        parent, grandparent, _ = (atoms[i] for i in zmatrix.references[row])
        if not in_frames.any():
            continue
        if zmatrix.own_torsion[row] and _is_peptide_bond(parent, grandparent):
            form = "cis" if np.abs(torsions[:, column][in_frames]).mean() < 0.5 * math.pi else "trans"
            first, second = sorted((parent.residue, grandparent.residue), key=lambda residue: residue.index)
            name = f"{first.name}{first.id}-{second.name}{second.id} ({form})"
            turned[name] += int(in_frames.sum())
            continue
        in_frames = in_frames & ~mirror_image  # every carbon with two hydrogens has another form there
        if parent.index in of_centre:
            in_frames = in_frames & ~inverted[:, of_centre[parent.index]]
        name = f"{parent.residue.name}{parent.residue.id}:{parent.name}"
        elsewhere[name] = elsewhere.get(name, np.zeros(len(left_out), dtype=bool)) | in_frames
    others.update({name: int(frames.sum()) for name, frames in elsewhere.items() if frames.any()})
    kinds = (
        ("Peptide bonds turned", turned),
        ("Stereocentres inverted", mirrored),
        ("Atoms exchanged or another form at", others),
    )
    return [f"{kind}: {_counted(found)}." for kind, found in kinds if found]


def _is_peptide_bond(first: openmm.app.topology.Atom, second: openmm.app.topology.Atom) -> bool:
    return {first.name, second.name} == {"C", "N"} and first.residue != second.residue


def _counted(found: Counter[str]) -> str:
    names = [f"{name} in {n} frame{'s' if n > 1 else ''}" for name, n in found.most_common(_SHOWN)]
    return ", ".join(names) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
