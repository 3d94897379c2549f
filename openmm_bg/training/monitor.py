"""How good a generator is in the middle of its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from openmm_bg.density import FloatArray
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.training.pool import Pool
from openmm_bg.training.wells import Wells

EVALUATION_SIZE = 2048


def evaluate(
    generator: BoltzmannGenerator,
    energy: Callable[[FloatArray], FloatArray],
    kt: float,
    wells: Wells,
    pool: Pool | None,
    rng: torch.Generator,
    n: int = EVALUATION_SIZE,
) -> dict[str, Any]:
    """Effective sample size and well populations of fresh samples.

    Parameters
    ----------
    generator : BoltzmannGenerator
    energy : callable
        Positions in nm to energies in kJ/mol.
    kt : float
        In kJ/mol.
    wells : Wells
    pool : Pool or None
        Where the reweighted populations are taken from, if there is one: it covers wells the generator has lost.
    rng : torch.Generator
    n : int
        Samples.

    Returns
    -------
    dict
        `ess_fraction`, 0 if no sample has a finite weight, and `populations` as `Wells.populations` gives them.
    """
    with torch.no_grad():
        positions, log_prob = generator._decode(generator.flow.sample_base(n, rng))
        circular = generator.features.encode(generator.coordinates.to_internal(positions))[0].cpu().numpy()
    log_weights = -energy(positions.cpu().numpy()) / kt - log_prob.cpu().numpy()
    log_weights[~np.isfinite(log_weights)] = -np.inf
    weights = np.zeros(n)
    if np.isfinite(log_weights).any():
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
    populations = wells.populations(circular, weights)
    if pool is not None:
        weighted = wells.populations(pool.circular.cpu().numpy().astype(np.float64), pool.weights.numpy())
        for record, other in zip(populations, weighted, strict=True):
            record["reweighted"] = other["reweighted"]
    fraction = float(1.0 / (weights**2).sum() / n) if weights.any() else 0.0
    return {"ess_fraction": fraction, "populations": populations}
