"""A proposal density with closed-form answers, for tests of moves and estimators without a trained flow."""

from __future__ import annotations

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import safetensors
from openmm import unit
from safetensors.numpy import save

from openmm_bg.base import Base
from openmm_bg.density import FloatArray, Samples
from openmm_bg.files import write_bytes

if TYPE_CHECKING:
    import openmm
    import openmm.app

_FORMAT = "openmm_bg.testing.GaussianDensity"


class GaussianDensity:
    """Independent normal distributions of every Cartesian coordinate, at an absolute pose.

    It fits unconstrained particles held in place by external forces: for the harmonic oscillator of width `sigma`
    it is the Boltzmann distribution itself.

    Parameters
    ----------
    mean : array_like or Quantity, shape (n_atoms, 3)
        Centre of each coordinate, in nm if it has no unit.
    sigma : float, array_like or Quantity
        Standard deviation, positive; broadcast to the shape of `mean`; in nm if it has no unit.

    Attributes
    ----------
    mean, sigma : ndarray, shape (n_atoms, 3)
        In nm.
    n_atoms : int
    content_hash : str
        Digest of mean and sigma.
    pose : "absolute"
    path : str or None
        The file that the density was saved to or loaded from.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a value is not finite, or a standard deviation is not positive.
    """

    pose: Literal["invariant", "absolute"] = "absolute"

    def __init__(self, mean: Any, sigma: Any) -> None:
        self.mean = _in_nanometers(mean)
        if self.mean.ndim != 2 or self.mean.shape[1] != 3:
            raise ValueError(f"mean must have the shape (n_atoms, 3), but has {self.mean.shape}.")
        self.sigma = np.broadcast_to(_in_nanometers(sigma), self.mean.shape).copy()
        if not (np.isfinite(self.mean).all() and np.isfinite(self.sigma).all() and (self.sigma > 0.0).all()):
            raise ValueError("mean must be finite, and sigma finite and positive, in every coordinate.")
        self.n_atoms = len(self.mean)
        self.content_hash = hashlib.sha256(
            _FORMAT.encode() + str(self.mean.shape).encode() + self.mean.tobytes() + self.sigma.tobytes()
        ).hexdigest()
        self.path: str | None = None

    @property
    def base(self) -> Base:
        """Density of the latents."""
        return Base(0, 3 * self.n_atoms)

    def sample(self, n: int, *, rng: np.random.Generator | int | None = None) -> Samples:
        """Draw `n` independent configurations; the same seed gives the same draws."""
        latents = np.random.default_rng(rng).standard_normal((n, 3 * self.n_atoms))
        positions = self.from_latent(latents)
        return Samples(positions, self.log_prob(positions))

    def log_prob(self, positions: FloatArray) -> FloatArray:
        """Log density of configurations in nm, shape (n, n_atoms, 3) to (n,), on Cartesian coordinates."""
        latents = self.to_latent(positions)
        normalisation = np.log(self.sigma).sum() + 0.5 * latents.shape[1] * np.log(2.0 * np.pi)
        log_prob: FloatArray = -0.5 * np.einsum("ni,ni->n", latents, latents) - normalisation
        return log_prob

    def to_latent(self, positions: FloatArray) -> FloatArray:
        """Standard-normal latents of configurations, shape (n, n_atoms, 3) to (n, 3 n_atoms)."""
        positions = np.asarray(positions, dtype=np.float64)
        if positions.ndim != 3 or positions.shape[1:] != self.mean.shape:
            raise ValueError(f"positions must have the shape (n, {self.n_atoms}, 3), but have {positions.shape}.")
        return ((positions - self.mean) / self.sigma).reshape(len(positions), -1)

    def from_latent(self, latents: FloatArray) -> FloatArray:
        """Configurations in nm of latents, shape (n, 3 n_atoms) to (n, n_atoms, 3)."""
        latents = np.asarray(latents, dtype=np.float64).reshape(-1, self.n_atoms, 3)
        positions: FloatArray = self.mean + self.sigma * latents
        return positions

    def check(self, system: openmm.System, topology: openmm.app.Topology | None = None) -> None:
        """Raise ValueError unless `system` has as many particles as the density, all of them free to move."""
        n_particles = system.getNumParticles()
        if n_particles != self.n_atoms:
            raise ValueError(
                f"The density is one of {self.n_atoms} atoms, but the System has {n_particles} particles. "
                "Use the System that the density was made for."
            )
        if system.getNumConstraints() > 0:
            raise ValueError(
                f"The System has {system.getNumConstraints()} constraints, which a Gaussian density of Cartesian "
                "coordinates violates. Build the System with constraints=None."
            )
        if any(system.getParticleMass(i).value_in_unit(unit.dalton) == 0.0 for i in range(n_particles)):
            raise ValueError("The System has particles without mass, which a Gaussian density would move.")

    def save(self, path: str | PathLike[str]) -> None:
        """Write the density to one safetensors file, replacing it as a whole or not at all."""
        metadata = {"format": _FORMAT, "description": json.dumps({"content_hash": self.content_hash})}
        content = save({"mean": self.mean, "sigma": self.sigma}, metadata=metadata)
        target = Path(path).absolute()
        write_bytes(target, content)
        self.path = str(target)

    @classmethod
    def load(cls, path: str | PathLike[str], *, system: openmm.System | None = None) -> Self:
        """Read what `save` wrote; with `system` also check that the density was made for it.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not one of a Gaussian density, is damaged, or does not fit `system`.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"{path} is no file of a GaussianDensity: its format is {metadata.get('format')}.")
                content_hash = json.loads(metadata["description"])["content_hash"]
                density = cls(file.get_tensor("mean"), file.get_tensor("sigma"))
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged or not a safetensors file of a GaussianDensity: {error}") from error
        if density.content_hash != content_hash:
            raise ValueError(f"{path} was changed after it was saved: its content does not have the stored hash.")
        if system is not None:
            density.check(system)
        density.path = str(Path(path).absolute())
        return density


def _in_nanometers(value: Any) -> FloatArray:
    if unit.is_quantity(value):
        value = value.value_in_unit(unit.nanometer)
    return np.ascontiguousarray(value, dtype=np.float64)
