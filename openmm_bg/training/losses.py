"""Losses of a generator. Energies are regularised here only; weights and acceptances never see that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_bg.generator import BoltzmannGenerator

BOLTZMANN = 0.00831446261815324  # kJ/mol/K
MOST_FORCE = 3000.0  # kT/nm at 300 K, where in dynamics of peptides and proteins no atom had one above 2,600


def log_likelihood(generator: BoltzmannGenerator, circular: Tensor, linear: Tensor) -> Tensor:
    """Log density of features of data, shape (n,): without the Jacobian to positions, which training cannot change."""
    latent, log_det = generator.flow.inverse(circular, linear)
    return generator.flow.base_log_prob(latent) + log_det


def most_force(kt: float) -> float:
    """Where forces are capped (kT/nm), given kT (kJ/mol): in kT they fall with the square root of the temperature."""
    return MOST_FORCE * math.sqrt(300.0 * BOLTZMANN / kt)


def with_capped_forces(energy: Callable[[Tensor], Tensor], positions: Tensor, most: float) -> Tensor:
    """Reduced energies whose gradient is capped atom by atom.

    A clash has a force of any size, so the worst one of a sample would be all that its gradient knows of. Capped, every
    atom that clashes is pushed out of its clash, all of them at once and as hard.

    Parameters
    ----------
    energy : callable
        Reduced energies (n,), differentiable, of positions (n, n_atoms, 3).
    positions : Tensor, shape (n, n_atoms, 3)
        In nm.
    most : float
        The largest force on an atom, in kT/nm; larger ones keep their direction. `most_force` says how large.

    Returns
    -------
    Tensor, shape (n,)
    """
    if not torch.is_grad_enabled():
        return energy(positions)
    at = positions.detach().requires_grad_()
    values = energy(at)
    (gradient,) = torch.autograd.grad(values.sum(), at)
    capped = gradient * (most / torch.linalg.vector_norm(gradient, dim=2, keepdim=True).clamp_min(most))
    return values.detach() + ((positions - positions.detach()) * capped).sum((1, 2))


@dataclass(frozen=True)
class EnergyCap:
    """How the energy of a bad sample is counted in the value of a loss; its gradient stays what it is.

    Energies are themselves up to `start`; above, they grow with the logarithm, over a width of `width` kT, so that the
    value tells of more than the worst sample.

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
        value = reduced_energy.detach()
        excess = (value - mean - self.start).clamp_min(0.0)
        capped = torch.where(excess > 0.0, mean + self.start + self.width * torch.log1p(excess / self.width), value)
        return capped + (reduced_energy - value)


def reverse_kl(log_prob: Tensor, reduced_energy: Tensor, cap: EnergyCap, mean: float) -> Tensor:
    """E_p[log p + u] over the samples with a finite energy; shapes (n,), to a scalar."""
    finite = torch.isfinite(reduced_energy) & torch.isfinite(log_prob)
    capped = cap(torch.where(finite, reduced_energy, torch.zeros_like(reduced_energy)), mean)
    terms = torch.where(finite, log_prob + capped, torch.zeros_like(log_prob))
    return terms.sum() / finite.sum().clamp_min(1)
