"""Side chains of the data shown in other rotamers, so that a generator proposes those that a short run never visited.

A torsion about a bond between two tetrahedral atoms has three wells, a third of a turn apart. Turned by thirds, the
side chain of a frame keeps the shape of its wells and loses only what is known of which one it prefers: that is for
the acceptance to judge.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openmm_bg.coordinates.rotamers import between_tetrahedral
from openmm_bg.generator import BoltzmannGenerator


class RotamerJumps:
    """Turns torsions of side chains by thirds of a turn.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Of reduced coordinates.

    Raises
    ------
    ValueError
        If the generator does not tell side chains, or none has a torsion between tetrahedral atoms.
    """

    def __init__(self, generator: BoltzmannGenerator) -> None:
        labels = generator.latent_labels
        if labels is None:
            raise ValueError(
                "Rotamer jumps turn side chains, and a generator of full coordinates does not know them: make it with "
                'coordinates="reduced", or leave out rotamer_jumps.'
            )
        bonds = generator.coordinates.zmatrix.references[generator.features.circular_rows, :2]
        turns = between_tetrahedral(generator.topology, bonds) & (labels.kind[: len(bonds)] == "side_chain")
        if not turns.any():
            raise ValueError("Rotamer jumps: no side chain has a torsion between tetrahedral atoms. Leave them out.")
        self._columns = torch.tensor(turns).nonzero()[:, 0]
        residues = torch.as_tensor(labels.residue)[self._columns]
        self._residue = torch.unique(residues, return_inverse=True)[1]

    def __call__(self, circular: Tensor, probability: float, rng: torch.Generator) -> Tensor:
        """Torsions, shape (n, n_circular), with each residue's side chain turned at random with this probability.

        All its torsions between tetrahedral atoms are turned then, each by none, one or two thirds.
        """
        shape = len(circular), len(self._columns)
        jumps = torch.rand(len(circular), int(self._residue.max()) + 1, generator=rng) < probability
        thirds = torch.randint(3, shape, generator=rng) * jumps[:, self._residue]
        turned = circular.clone()
        angles = turned[:, self._columns] + thirds.to(circular) * (2.0 * math.pi / 3.0)
        turned[:, self._columns] = torch.remainder(angles + math.pi, 2.0 * math.pi) - math.pi
        return turned
