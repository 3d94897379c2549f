"""The generated coordinates of a reduced generator, given the frozen ones of one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from openmm import unit
from torch import Tensor

from openmm_bg.base import Base
from openmm_bg.coordinates.rotamers import Rotamers
from openmm_bg.density import FloatArray, LatentLabels, Samples

if TYPE_CHECKING:
    from openmm_bg.generator import BoltzmannGenerator


class GivenFrozen:
    """A density of the generated coordinates whose configurations all share the frozen coordinates of one of them.

    What a move uses of a generator with `frozen="keep"`: a Metropolis step within the generated coordinates, the frozen
    ones held at the current state's. Made by `BoltzmannGenerator.given`.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Of reduced coordinates.
    positions : ndarray, shape (n_atoms, 3)
        The configuration, in nm.

    Attributes
    ----------
    n_atoms, n_dof, n_circles : int
    base : Base
        Of the latents of the generated coordinates.
    latent_labels : LatentLabels
    """

    def __init__(self, generator: BoltzmannGenerator, positions: FloatArray) -> None:
        self._generator = generator
        with torch.no_grad():
            latent = generator._encode(torch.as_tensor(positions[None], device=generator.device))[0]
        self._frozen = latent[:, generator.n_generated :].double()
        self.n_atoms = generator.n_atoms
        self.n_dof = generator.n_generated
        self.n_circles = generator.n_circles
        self.base = Base(self.n_circles, self.n_dof - self.n_circles, generator.base.concentration)
        labels = generator.latent_labels
        assert labels is not None  # a reduced generator has them
        self.latent_labels = LatentLabels(labels.residue[: self.n_dof], labels.kind[: self.n_dof])

    @property
    def rotamers(self) -> Rotamers | None:
        """Bonds about which side chains turn."""
        return self._generator.rotamers

    @property
    def device(self) -> torch.device:
        """Where tensors have to be."""
        return self._generator.device

    def sample(self, n: int, *, rng: np.random.Generator | int | None = None) -> Samples:
        """Draw the generated coordinates of `n` configurations."""
        latents = self.base.draw(n, np.random.default_rng(rng))
        return Samples(*self._generator._decoded(self._completed(latents)))

    def log_prob(self, positions: unit.Quantity | FloatArray) -> FloatArray:
        """Log density of configurations in nm that have these frozen coordinates, up to a constant that they share.

        Shape (n, n_atoms, 3) to (n,). It is that of a generator with `frozen="thermal"`, so that differences are those
        of the density of the generated coordinates given the frozen ones.
        """
        return self._generator._in_chunks(positions, lambda x: self._generator._encode(x)[1])

    def to_latent(self, positions: unit.Quantity | FloatArray) -> FloatArray:
        """Latents of the generated coordinates, shape (n, n_atoms, 3) to (n, n_dof): circles first."""
        return self._generator._in_chunks(positions, lambda x: self._generator._encode(x)[0])[:, : self.n_dof]

    def encode(self, positions: unit.Quantity | FloatArray) -> tuple[FloatArray, FloatArray]:
        """`to_latent` and `log_prob` of configurations by one inverse pass."""
        latents, log_prob = self._generator._encoded(positions)
        return latents[:, : self.n_dof], log_prob

    def from_latent(self, latents: FloatArray) -> FloatArray:
        """Configurations of latents, shape (n, n_dof) to (n, n_atoms, 3) nm, with the given frozen coordinates."""
        return self._generator._decoded(self._completed(latents))[0]

    def from_latent_tensor(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (n, n_atoms, 3) in nm and `log_prob` (n,) of float64 latents (n, n_dof), differentiable."""
        return self._generator._decode(torch.cat([latents, self._frozen.expand(len(latents), -1)], 1))

    def _completed(self, latents: FloatArray) -> FloatArray:
        frozen = np.repeat(self._frozen.cpu().numpy(), len(latents), axis=0)
        return np.concatenate([np.asarray(latents, dtype=np.float64), frozen], axis=1)
