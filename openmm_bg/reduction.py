"""Reduced coordinates: which features are generated, and what becomes of the frozen ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import openmm.app
from numpy.typing import NDArray

from openmm_bg.coordinates import ZMatrix
from openmm_bg.coordinates.classification import CoordinateKinds, classify
from openmm_bg.coordinates.features import Features
from openmm_bg.flows import FlowConfig, Layout, Place, SplitConfig

Frozen = Literal["thermal", "keep", "mean"]


@dataclass(frozen=True)
class Reduction:
    """How a generator of reduced coordinates treats what it does not generate.

    Attributes
    ----------
    frozen : "thermal", "keep" or "mean"
        Drawn from a fixed density of their own; left as they are; set to their means, which is for pictures only.
    bond_lengths : bool
        Whether the lengths of backbone bonds are generated.

    Raises
    ------
    ValueError
        If `frozen` is another word.
    """

    frozen: Frozen = "thermal"
    bond_lengths: bool = False

    def __post_init__(self) -> None:
        if self.frozen not in get_args(Frozen):
            raise ValueError(f"frozen={self.frozen!r} is unknown; use one of {', '.join(map(repr, get_args(Frozen)))}.")

    def why_no_density(self) -> str | None:
        """Say why a generator of such coordinates has no density, None if it has one."""
        if self.frozen == "keep":
            return (
                "it was made with frozen='keep': it proposes the generated coordinates given the others, which it "
                "leaves as they are in the current state, so that it has a density only together with that state. Use "
                "it in a move, which is exact, or call given(positions); for samples, weights and free energies make "
                "the generator with frozen='thermal'"
            )
        if self.frozen == "mean":
            return (
                "it was made with frozen='mean': its samples all have the same bonds and angles in the side chains, "
                "which have no density and no weight in the real ensemble. They are for pictures; make the generator "
                "with frozen='thermal' or frozen='keep' for anything else"
            )
        return None


def feature_layout(
    features: Features,
    zmatrix: ZMatrix,
    topology: openmm.app.Topology,
    rotatable: NDArray[np.bool_],
    reduction: Reduction | None,
    config: FlowConfig | SplitConfig,
) -> Layout:
    """Return where each feature belongs; of a full generator with a spline flow, what is near along the molecule.

    Raises
    ------
    ValueError
        If residues matter and one is not that of a protein.
    """
    circular, linear = features.places(zmatrix)
    if reduction is None and isinstance(config, FlowConfig):
        return Layout.of_atoms(circular, linear)
    kinds = classify(zmatrix, topology, rotatable, bond_lengths=reduction is not None and reduction.bond_lengths)
    chains = [residue.chain.index for residue in topology.residues()]
    parts = ((kinds.bonds, features.free_bonds), (kinds.angles, features.free_angles))
    chosen = [(kind, index) for kind, rows in parts for index in rows]
    chosen += [(kinds.torsions, row) for row in features.linear_torsion_rows]

    def place(atom: int, kind: CoordinateKinds, index: int, generated: bool) -> Place:
        residue = int(kind.residue[index])
        return Place(atom, residue, chains[residue], bool(kind.side_chain[index]), generated)

    return Layout(
        tuple(
            place(atom, kinds.torsions, int(row), True)
            for atom, row in zip(circular, features.circular_rows, strict=True)
        ),
        tuple(
            place(atom, kind, int(index), reduction is None or bool(kind.generated[index]))
            for atom, (kind, index) in zip(linear, chosen, strict=True)
        ),
        split=isinstance(config, FlowConfig),
    )
