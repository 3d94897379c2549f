"""Molecules to work on: from a sequence, a PDB file, or a serialised System with its topology."""

from __future__ import annotations

from openmm_bg.systems.chignolin import chignolin
from openmm_bg.systems.files import from_pdb, from_xml, villin
from openmm_bg.systems.molecular_system import MolecularSystem
from openmm_bg.systems.peptides import peptide

__all__ = ["MolecularSystem", "chignolin", "from_pdb", "from_xml", "peptide", "villin"]
