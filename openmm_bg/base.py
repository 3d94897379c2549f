"""The base density of a generator's latents: angles on circles first, then standard normal numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from openmm_bg.density import FloatArray


@dataclass(frozen=True)
class Base:
    """Independent latents: von Mises or uniform ones on circles, in [-pi, pi), and standard normal ones behind them.

    Attributes
    ----------
    n_circles, n_normal : int
        How many of each.
    concentration : float
        kappa of the von Mises distribution, exp(kappa cos z) / (2 pi I0(kappa)), about 0; zero is the uniform one.

    Raises
    ------
    ValueError
        If a number is negative, or not finite.
    """

    n_circles: int
    n_normal: int
    concentration: float = 0.0

    def __post_init__(self) -> None:
        if min(self.n_circles, self.n_normal) < 0 or not 0.0 <= self.concentration < math.inf:
            raise ValueError(f"{self} has a negative number; expected counts and a concentration of at least 0.")

    @property
    def n_dof(self) -> int:
        """Number of latents."""
        return self.n_circles + self.n_normal

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Independent latents, shape (n, n_dof)."""
        latents = rng.standard_normal((n, self.n_dof))
        # numpy's von Mises distribution of concentration zero is the uniform one
        latents[:, : self.n_circles] = rng.vonmises(0.0, self.concentration, (n, self.n_circles))
        return latents

    def log_prob(self, latents: FloatArray) -> FloatArray:
        """Log density of latents, shape (n, n_dof) to (n,); circles in any period."""
        circles, normal = latents[:, : self.n_circles], latents[:, self.n_circles :]
        log_prob: FloatArray = self.circles_log_prob(circles).sum(axis=1) - 0.5 * (normal**2).sum(axis=1)
        return log_prob - 0.5 * self.n_normal * math.log(2.0 * math.pi)

    def circles_log_prob(self, circles: FloatArray) -> FloatArray:
        """Log density of each of some latents on circles, of any shape."""
        log_prob: FloatArray = self.concentration * np.cos(circles) - circle_log_normalisation(self.concentration)
        return log_prob


def circle_log_normalisation(concentration: float) -> float:
    """Ln of the integral of exp(concentration cos z) over the circle, 2 pi I0."""
    return math.log(2.0 * math.pi * float(np.i0(concentration)))
