"""W2 between two sets of structures by the distances of their backbones: docs, theory, "Estimators"."""

from __future__ import annotations

import itertools
import math

import numpy as np
import openmm.app
import torch
from torch import Tensor

from openmm_bg.density import FloatArray

BACKBONE = ("N", "CA", "C")


def backbone_pairs(topology: openmm.app.Topology) -> Tensor:
    """Pairs i < j of backbone atoms (N, CA, C), shape (n_pairs, 2).

    Those of residues that have all three, and the C or N of a cap that a peptide bond ties to one of them.

    Raises
    ------
    ValueError
        If there are not two such atoms.
    """
    names = {residue: {atom.name for atom in residue.atoms()} for residue in topology.residues()}
    whole = {residue for residue, found in names.items() if found.issuperset(BACKBONE)}
    chosen = {atom.index for residue in whole for atom in residue.atoms() if atom.name in BACKBONE}
    for first, second in topology.bonds():
        for cap, inner in ((first, second), (second, first)):
            if (
                cap.residue not in whole
                and inner.residue in whole
                and (cap.name, inner.name) in (("C", "N"), ("N", "C"))
            ):
                chosen.add(cap.index)
    if len(chosen) < 2:
        raise ValueError(
            "The molecule has no residue with atoms N, CA and C, so that there is no backbone to compare. Leave the W2 "
            "of backbone distances out."
        )
    return torch.tensor(list(itertools.combinations(sorted(chosen), 2)), dtype=torch.long)


def distances(positions: Tensor, pairs: Tensor) -> Tensor:
    """Distances of pairs of atoms, nm, shape (n, n_atoms, 3) to (n_pairs, n)."""
    ends = positions.permute(1, 2, 0)
    return torch.linalg.vector_norm(ends[pairs[:, 0]] - ends[pairs[:, 1]], dim=1)


def backbone_w2(positions: Tensor, reference: Tensor, pairs: Tensor) -> Tensor:
    """W2 between two sets of structures: mean over pairs of atoms of the exact W2 of the distance's two samples, nm.

    Differentiable in both sets of positions; the gradient of a pair whose two samples are equal is zero. Estimated from
    minibatches it is biased upwards: see `w2_baseline`.

    Parameters
    ----------
    positions, reference : Tensor, shapes (n, n_atoms, 3) and (m, n_atoms, 3), nm
        n and m may differ.
    pairs : Tensor of int, shape (n_pairs, 2)

    Raises
    ------
    ValueError
        If a set is empty.
    """
    if not len(positions) or not len(reference):
        raise ValueError(f"W2 of {len(positions)} and {len(reference)} structures; expected at least one in each set.")
    return wasserstein_2(distances(positions, pairs), distances(reference, pairs)).mean()


def wasserstein_2(x: Tensor, y: Tensor) -> Tensor:
    """Exact W2 between samples of real numbers, row by row, shapes (k, n) and (k, m) to (k,).

    The root of the integral over p of (quantile_x(p) - quantile_y(p))^2, both step functions.
    """
    x, y = x.sort(1).values, y.sort(1).values
    n, m = x.shape[1], y.shape[1]
    if n == m:
        squared = (x - y).square().mean(1)
    else:
        # steps of both quantile functions, in units of 1 / (n m): between two of them both are constant
        steps = torch.cat([m * torch.arange(n, device=x.device), n * torch.arange(m, device=x.device)]).unique()
        widths = torch.diff(steps, append=steps.new_tensor([n * m])).to(x.dtype) / (n * m)
        squared = (x[:, steps // m] - y[:, steps // n]).square() @ widths
    different = squared > 0.0  # the root has no gradient at zero
    return torch.where(different, torch.where(different, squared, 1.0).sqrt(), 0.0)


def w2_baseline(
    positions: FloatArray,
    pairs: Tensor,
    batch_size: int,
    *,
    weights: FloatArray | None = None,
    n_repeats: int = 10,
    rng: np.random.Generator | int | None = None,
) -> tuple[float, float]:
    """`backbone_w2` of the data against themselves: what two minibatches of one distribution come to.

    Parameters
    ----------
    positions : array, shape (n, n_atoms, 3), nm
    pairs : Tensor of int, shape (n_pairs, 2)
    batch_size : int
        Of each of the two sets; they are drawn with replacement, as minibatches are.
    weights : array, shape (n,), optional
        Probabilities to draw by, of any sum.
    n_repeats : int
    rng : numpy Generator or seed, optional

    Returns
    -------
    mean, standard error : float
        nm.

    Raises
    ------
    ValueError
        If there are fewer than two repeats.
    """
    if n_repeats < 2:
        raise ValueError(f"n_repeats is {n_repeats}; expected at least 2, for an error.")
    rng = np.random.default_rng(rng)
    probabilities = None if weights is None else weights / weights.sum()
    found = []
    for _ in range(n_repeats):
        rows = rng.choice(len(positions), (2, batch_size), p=probabilities)
        first, second = (torch.as_tensor(positions[row], dtype=torch.float64) for row in rows)
        found.append(float(backbone_w2(first, second, pairs)))
    return float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(n_repeats))
