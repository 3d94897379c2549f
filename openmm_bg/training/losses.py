"""Losses of a generator. Energies are regularised here only; weights and acceptances never see that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_bg.generator import BoltzmannGenerator

BOLTZMANN = 0.00831446261815324  # kJ/mol/K


def log_likelihood(generator: BoltzmannGenerator, circular: Tensor, linear: Tensor) -> Tensor:
    """Log density of features of data, shape (n,): without the Jacobian to positions, which training cannot change."""
    latent, log_det = generator.flow.inverse(circular, linear)
    return generator.flow.base_log_prob(latent) + log_det


@dataclass(frozen=True)
class EnergyCap:
    """Where the energy of a bad sample stops pulling at full strength.

    Energies are themselves up to `start`; above, they grow with the logarithm, over a width of `width` kT, so that
    clashes neither dominate the gradient nor lose it.

    Attributes
    ----------
    start : float
        In units of kT above the mean of the data.
    width : float
        In units of kT.
    """

    start: float = 70.0
    width: float = 10.0

    def __call__(self, reduced_energy: Tensor, mean: float) -> Tensor:
        """Regularised reduced energies, given the mean of the data's; shape (n,) to (n,)."""
        excess = (reduced_energy - mean - self.start).clamp_min(0.0)
        return torch.where(
            excess > 0.0, mean + self.start + self.width * torch.log1p(excess / self.width), reduced_energy
        )


def reverse_kl(log_prob: Tensor, reduced_energy: Tensor, cap: EnergyCap, mean: float) -> Tensor:
    """E_p[log p + u] over the samples with a finite energy; shapes (n,), to a scalar."""
    finite = torch.isfinite(reduced_energy) & torch.isfinite(log_prob)
    capped = cap(torch.where(finite, reduced_energy, torch.zeros_like(reduced_energy)), mean)
    terms = torch.where(finite, log_prob + capped, torch.zeros_like(log_prob))
    return terms.sum() / finite.sum().clamp_min(1)
