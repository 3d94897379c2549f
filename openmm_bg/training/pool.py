"""Torsions weighted for the target, from samples that do not miss a well the generator has forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_bg.density import FloatArray
from openmm_bg.flows import Flow
from openmm_bg.generator import BoltzmannGenerator


@dataclass(frozen=True)
class Pool:
    """Torsions with importance weights.

    Attributes
    ----------
    circular : Tensor, shape (n, n_circular)
    weights : Tensor, shape (n,)
        Sum to one.
    """

    circular: Tensor
    weights: Tensor

    @property
    def ess_fraction(self) -> float:
        """Effective sample size over n."""
        return float(1.0 / (self.weights**2).sum()) / len(self.weights)


def draw_pool(
    generator: BoltzmannGenerator,
    wide: Flow,
    energy: Callable[[FloatArray], FloatArray],
    kt: float,
    size: int,
    rng: torch.Generator,
) -> Pool | None:
    """Draw half of the torsions from the generator and half from a wider flow, everything else from the generator.

    The weights are those of the mixture, exp(-u) / ((p(tau) + r(tau))/2 p(y | tau)): bounded where the generator's own
    p(tau) has lost a well that the wide r(tau) still covers.

    Parameters
    ----------
    generator : BoltzmannGenerator
    wide : SplineFlow
        A flow over the same features, such as the generator's own as fitted to data of a high temperature; its
        torsions are used.
    energy : callable
        Positions in nm to energies in kJ/mol.
    kt : float
        In kJ/mol.
    size : int
    rng : torch.Generator

    Returns
    -------
    Pool or None
        None if not one sample has a finite weight.
    """
    half = size // 2
    with torch.no_grad():
        own = generator._decode(generator.flow.sample_base(size - half, rng))[0]
        widely = generator._decode_given(wide(wide.sample_base(half, rng))[0], rng)
        positions = torch.cat([own, widely])
        _, log_prob = generator._encode(positions)
        circular = generator.features.encode(generator.coordinates.to_internal(positions))[0].float()
        log_own, log_wide = generator.flow.torsion_log_prob(circular), wide.torsion_log_prob(circular)
        log_mixture = log_prob + (torch.logaddexp(log_own, log_wide) - math.log(2.0) - log_own).double()
        reduced = torch.as_tensor(energy(positions.cpu().numpy()), device=positions.device) / kt
        log_weights = -reduced - log_mixture
        usable = torch.isfinite(log_weights)
        if not bool(usable.any()):
            return None
        return Pool(circular, torch.softmax(torch.where(usable, log_weights, -torch.inf), 0).cpu())
