"""What a Monte Carlo move needs from a proposal density, however the density is made.

`log_prob` has one meaning everywhere in this package: the natural logarithm of the density on the measure that
OpenMM samples. For a density that is invariant under translation and rotation this is the measure modulo pose,
log p(q) - log J(q) - 1/2 ln det Z(q) (docs: theory, "The measure"); for one with an absolute pose it is the
density on Cartesian coordinates. Importance weights are therefore log w = -u - log_prob in every room above.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import openmm
    import openmm.app
    import torch
    from openmm import unit
    from torch import Tensor

    from openmm_bg.base import Base

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Independent draws from a proposal density.

    Attributes
    ----------
    positions : ndarray, shape (n, n_atoms, 3), float64
        Cartesian positions in nm. A draw that left the domain of the coordinates may hold NaN.
    log_prob : ndarray, shape (n,), float64
        Log density, on the measure that OpenMM samples, that each draw was made with; -inf for a draw off the support.
    """

    positions: FloatArray
    log_prob: FloatArray

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class LatentLabels:
    """What each latent of a generator of reduced coordinates belongs to.

    Attributes
    ----------
    residue : ndarray of int, shape (n_dof,)
        Index of the residue.
    kind : ndarray of str, shape (n_dof,)
        "backbone", "side_chain" or "frozen". Latents of a side chain move nothing but that side chain.
    """

    residue: NDArray[np.int64]
    kind: NDArray[np.str_]


@runtime_checkable
class Proposals(Protocol):
    """What a kernel draws from and judges with; a `ProposalDensity`, or one whose frozen coordinates are given."""

    @property
    def n_atoms(self) -> int:
        """Number of atoms of a configuration."""
        ...

    def sample(self, n: int, *, rng: np.random.Generator | int | None = None) -> Samples:
        """Draw `n` independent configurations; the same seed gives the same draws."""
        ...

    def log_prob(self, positions: FloatArray) -> FloatArray:
        """Log density of configurations in nm, shape (n, n_atoms, 3) to (n,); -inf off the support."""
        ...


@runtime_checkable
class LatentProposals(Proposals, Protocol):
    """Proposals that are the image of a simple base density under an invertible map."""

    @property
    def base(self) -> Base:
        """Density of the latents."""
        ...

    def to_latent(self, positions: FloatArray) -> FloatArray:
        """Latents of configurations, shape (n, n_atoms, 3) to (n, n_dof); NaN off the support."""
        ...

    def from_latent(self, latents: FloatArray) -> FloatArray:
        """Configurations in nm of latents, shape (n, n_dof) to (n, n_atoms, 3)."""
        ...


@runtime_checkable
class DifferentiableLatentProposals(LatentProposals, Protocol):
    """Proposals from latents by a map that has a gradient."""

    @property
    def n_dof(self) -> int:
        """Number of latents."""
        ...

    @property
    def n_circles(self) -> int:
        """Number of latents that are angles in [-pi, pi); they come first."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors have to be."""
        ...

    def from_latent_tensor(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (n, n_atoms, 3) in nm and log density (n,) of float64 latents (n, n_dof), differentiable."""
        ...


@runtime_checkable
class ProposalDensity(Proposals, Protocol):
    """A normalised density from which independent configurations can be drawn."""

    @property
    def content_hash(self) -> str:
        """Hexadecimal digest of everything that determines the density."""
        ...

    @property
    def pose(self) -> Literal["invariant", "absolute"]:
        """Whether `log_prob` is a density modulo translation and rotation or one on Cartesian coordinates."""
        ...

    def check(self, system: openmm.System, topology: openmm.app.Topology | None = None) -> None:
        """Raise ValueError, saying what differs, if `system` is not the one the density was made for."""
        ...

    def save(self, path: str | PathLike[str]) -> None:
        """Write the density to one file, replacing it as a whole or not at all."""
        ...

    @classmethod
    def load(cls, path: str | PathLike[str], *, system: openmm.System | None = None) -> Self:
        """Read what `save` wrote; with `system` also check that the density was made for it."""
        ...


@runtime_checkable
class LatentDensity(ProposalDensity, LatentProposals, Protocol):
    """A proposal density that is the image of a simple base density under an invertible map."""


@runtime_checkable
class DifferentiableDensity(ProposalDensity, Protocol):
    """A proposal density meant for one temperature, with a gradient: what a Force or a path to it is made from."""

    @property
    def temperature(self) -> unit.Quantity:
        """The temperature that the density is meant for."""
        ...

    def log_prob_tensor(self, positions: Tensor) -> Tensor:
        """`log_prob` as a differentiable function of a float64 tensor in nm, shape (n, n_atoms, 3) to (n,)."""
        ...


def check_has_density(density: object, purpose: str) -> None:
    """Raise ValueError if a generator has no density of its own, as one of reduced coordinates may have none.

    Parameters
    ----------
    density : object
    purpose : str
        What needs the density, as the subject of a sentence.
    """
    why = getattr(density, "why_no_density", None)
    if why is not None:
        raise ValueError(f"{purpose} needs a density, and the generator has none: {why}.")
