"""Wells of rotatable torsions, found in data, and how much of each the generator visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_bg.density import FloatArray

N_BINS = 72


@dataclass(frozen=True)
class Wells:
    """Sectors of each torsion between the deepest points of its density.

    Attributes
    ----------
    edges : list of ndarray
        For each torsion the ascending lower edges (rad) of its sectors; the last one wraps around.
    """

    edges: list[FloatArray]

    @classmethod
    def find(cls, torsions: FloatArray) -> Wells:
        """Cut each column of `torsions`, shape (n, d), at the minima of its smoothed histogram."""
        return cls([_minima(column) for column in torsions.T])

    def populations(self, torsions: FloatArray, weights: FloatArray) -> list[dict[str, Any]]:
        """Raw and weighted share of samples in each well; weights sum to one."""
        records = []
        for torsion, edges in enumerate(self.edges):
            well = np.searchsorted(edges, torsions[:, torsion], side="right") - 1
            well[well < 0] = len(edges) - 1
            for k, low in enumerate(edges):
                inside = well == k
                high = edges[(k + 1) % len(edges)]
                records.append(
                    {
                        "torsion": torsion,
                        "low": float(low),
                        "high": float(high if high > low else high + 2.0 * np.pi),
                        "generator": float(inside.mean()),
                        "reweighted": float(weights[inside].sum()),
                    }
                )
        return records


def _minima(column: FloatArray) -> FloatArray:
    """Positions of the clear minima of a circular density, at least one."""
    counts, edges = np.histogram(column, bins=N_BINS, range=(-np.pi, np.pi))
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    padded = np.concatenate([counts[-6:], counts, counts[:6]]).astype(float)
    density = np.convolve(padded, kernel / kernel.sum(), mode="valid")
    centres = 0.5 * (edges[1:] + edges[:-1])
    low = [k for k in range(N_BINS) if density[k] <= density[k - 1] and density[k] < density[(k + 1) % N_BINS]]
    # a minimum counts if on both sides the density rises to twice its value before the next minimum
    kept = []
    for i, k in enumerate(low):
        after = low[(i + 1) % len(low)]
        before = low[i - 1]
        peaks = [
            density[np.arange(before, k if k > before else k + N_BINS) % N_BINS].max(),
            density[np.arange(k, after if after > k else after + N_BINS) % N_BINS].max(),
        ]
        if min(peaks) > 2.0 * density[k] + 2.0:
            kept.append(k)
    return centres[kept] if kept else centres[[int(np.argmin(density))]]
