"""Hydrogens that a structure lacks, the same ones at every call."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import openmm
from openmm import app, unit
from openmm.app.topology import Atom, Residue

from openmm_bg.systems.residue_templates import nonstandard_template, template_hydrogens


def add_hydrogens(
    field: app.ForceField | None,
    topology: app.Topology,
    positions: unit.Quantity,
    variants: Sequence[str | None] | None = None,
) -> tuple[app.Topology, unit.Quantity]:
    """Topology and positions with the missing hydrogens added, for pH 7.

    Parameters
    ----------
    field : openmm.app.ForceField or None
        Relaxes the new hydrogens, and knows those of non-standard amino acids.
    topology, positions
        The structure.
    variants : sequence of (str or None), optional
        Names of protonation states, one for each residue; None leaves the choice to OpenMM.

    Raises
    ------
    ValueError
        If the force field does not fit the structure.
    """
    present: dict[Atom, list[str]] = defaultdict(list)
    for first, second in topology.bonds():
        for hydrogen, parent in ((first, second), (second, first)):
            if hydrogen.element is app.element.hydrogen:
                present[parent].append(hydrogen.name)
    chosen: list[str | list[tuple[str, str]] | None] = []
    for residue, variant in zip(topology.residues(), variants or [None] * topology.getNumResidues(), strict=True):
        template = None if field is None or variant is not None else nonstandard_template(field, residue)
        chosen.append(variant if template is None else _hydrogens(residue, template, present))
    modeller = app.Modeller(topology, positions)
    with _fixed_random_state():
        modeller.addHydrogens(field, variants=chosen, platform=openmm.Platform.getPlatformByName("Reference"))
    return modeller.topology, modeller.positions


def _hydrogens(residue: Residue, template: Any, present: dict[Atom, list[str]]) -> list[tuple[str, str]]:
    """Hydrogens of a residue and their parents: as many as the template has, those that are there first."""
    expected: dict[str, list[str]] = defaultdict(list)
    for hydrogen, parent in template_hydrogens(template):
        expected[parent].append(hydrogen)
    found = []
    for atom in residue.atoms():
        own = present[atom]
        new = [name for name in expected[atom.name] if name not in own]
        found += [(name, atom.name) for name in (own + new)[: max(len(own), len(expected[atom.name]))]]
    return found


@contextmanager
def _fixed_random_state() -> Iterator[None]:
    """Modeller displaces new hydrogens with Python's global generator: fix it, and put it back."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
