"""Molecules, deliberately bad generators and mutants for the tests of exactness."""

from __future__ import annotations

import numpy as np
import torch
from small_molecules import CHAIN, STAR, TEMPERATURE, SmallMolecule

from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves import Independence

TRIMER = CHAIN[:2]
FREE_ANGLE = SmallMolecule((12.0, 16.0, 1.0), TRIMER)
BENT = SmallMolecule((12.0, 16.0, 1.0), TRIMER, angle_spring=30.0)
BUTANE = SmallMolecule((15.0, 14.0, 14.0, 15.0), CHAIN, angle_spring=40.0, torsion=(3, 0.3, 4.0))
UMBRELLA = SmallMolecule((14.0, 1.0, 1.0, 1.0), STAR, angle_spring=30.0, torsion=(1, 2.1 - np.pi, 5.0))
RIGID_TRIMER = SmallMolecule((12.0, 1.0, 12.0), TRIMER, bond_spring=None)
RIGID_CHAIN = SmallMolecule((12.0, 1.0, 1.0, 12.0), CHAIN, bond_spring=None, torsion=(2, 0.4, 2.0))
REPARTITIONED = SmallMolecule(  # a methyl group whose hydrogens took 3 amu each from the carbon
    (3.03, 4.0, 4.0, 4.0), STAR, bond_spring=None, torsion=(1, 2.1 - np.pi, 2.0)
)
RIGID_ANGLE = SmallMolecule((12.0, 1.0, 2.0, 12.0), CHAIN, bond_spring=None, rigid_angle=True, torsion=(1, 0.4, 2.0))
MOLECULES = {
    "free angle": FREE_ANGLE,
    "bent": BENT,
    "torsion": BUTANE,
    "sibling torsion": UMBRELLA,
    "two constraints": RIGID_TRIMER,
    "coupled constraints": RIGID_CHAIN,
    "repartitioned masses": REPARTITIONED,
    "rigid angle": RIGID_ANGLE,
}


class WithoutLogProb(Independence):
    """Mutant: the acceptance forgets the proposal density."""

    def _log_weight(self, reduced_potential: np.ndarray, log_prob: np.ndarray) -> np.ndarray:
        return -reduced_potential


class WithoutJacobian(BoltzmannGenerator):
    """Mutant: the density on internal coordinates, taken for one on positions."""

    def _decode(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions, log_prob = super()._decode(latent)
        return positions, log_prob + self.coordinates.log_jacobian(self.coordinates.to_internal(positions))

    def _encode(self, positions: torch.Tensor, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        latent, log_prob = super()._encode(positions, dtype)
        return latent, log_prob + self.coordinates.log_jacobian(self.coordinates.to_internal(positions))


class WithoutMetric(BoltzmannGenerator):
    """Mutant: constraints taken for infinitely stiff bonds."""

    def _decode(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions, log_prob = super()._decode(latent)
        return positions, log_prob + self.metric(positions)

    def _encode(self, positions: torch.Tensor, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        latent, log_prob = super()._encode(positions, dtype)
        return latent, log_prob + self.metric(positions)


def untrained(
    molecule: SmallMolecule, kind: type[BoltzmannGenerator] = BoltzmannGenerator, seed: int = 0
) -> BoltzmannGenerator:
    return kind.from_system(
        molecule.system(), molecule.topology(), TEMPERATURE, positions=molecule.reference(), seed=seed
    )


def shifted(molecule: SmallMolecule, kind: type[BoltzmannGenerator] = BoltzmannGenerator) -> BoltzmannGenerator:
    """Proposals around the wrong structure, broad enough to reach all of the target."""
    generator = untrained(molecule, kind)
    features = generator.features
    counts = (len(features.free_bonds), len(features.free_angles), len(features.linear_torsion_rows))
    widths = torch.cat([torch.full((n,), width) for n, width in zip(counts, (0.16, 1.1, 0.8), strict=True)])
    with torch.no_grad():
        features.scale.copy_(widths)
        features.mean.add_(0.4 * widths)
    return generator


def scrambled(molecule: SmallMolecule, kind: type[BoltzmannGenerator] = BoltzmannGenerator) -> BoltzmannGenerator:
    """Every layer of the flow does something, nothing of it learnt."""
    generator = shifted(molecule, kind)
    numbers = torch.Generator().manual_seed(7)
    with torch.no_grad():
        generator.features.mean.sub_(0.4 * generator.features.scale)
        for parameter in generator.flow.parameters():
            parameter.add_(0.07 * torch.randn(parameter.shape, generator=numbers))
    return generator


FLOWS = {"shifted": shifted, "scrambled": scrambled}
