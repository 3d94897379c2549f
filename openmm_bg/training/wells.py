"""Wells of rotatable torsions, found in data, and how much of each the generator visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmm_bg.density import FloatArray

N_BINS = 72
NOTICED, STARVED = 0.005, 0.2  # share of the reweighted ensemble; of that share in the generator's samples
SEEN = 0.02  # share of the data


@dataclass(frozen=True)
class Wells:
    """Sectors of each torsion between the deepest points of its density.

    Attributes
    ----------
    edges : list of ndarray
        For each torsion the ascending lower edges (rad) of its sectors; the last one wraps around.
    shares : list of ndarray
        For each torsion the share of the data in each sector.
    """

    edges: list[FloatArray]
    shares: list[FloatArray]

    @classmethod
    def find(cls, torsions: FloatArray, weights: FloatArray) -> Wells:
        """Cut each column of `torsions`, shape (n, d), at the minima of its smoothed histogram; weights sum to one."""
        edges = [_minima(column) for column in torsions.T]
        shares = []
        for column, cuts in zip(torsions.T, edges, strict=True):
            sector = _sector(column, cuts)
            shares.append(np.array([weights[sector == k].sum() for k in range(len(cuts))]))
        return cls(edges, shares)

    def populations(self, torsions: FloatArray, weights: FloatArray) -> list[dict[str, Any]]:
        """Raw and weighted share of samples in each well, and that of the data; weights sum to one."""
        records = []
        for torsion, (edges, shares) in enumerate(zip(self.edges, self.shares, strict=True)):
            well = _sector(torsions[:, torsion], edges)
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
                        "data": float(shares[k]),
                    }
                )
        return records


def starved_wells(populations: list[dict[str, Any]]) -> list[str]:
    """Warnings about wells that the generator visits too rarely, or not at all although the data do."""
    warnings = []
    for well in populations:
        place = f"torsion {well['torsion']} in [{well['low']:.2f}, {well['high']:.2f}] rad"
        if well["reweighted"] > NOTICED and well["generator"] < STARVED * well["reweighted"]:
            warnings.append(
                f"The generator visits {place} with {well['generator']:.4f} of its samples, the reweighted ensemble "
                f"holds {well['reweighted']:.4f}: that basin is starved. Train longer or start from more data there."
            )
        elif well["generator"] == 0.0 and well["data"] > SEEN:
            warnings.append(
                f"The generator does not visit {place}, where {well['data']:.4f} of the data are: unless that basin is "
                "empty at the generator's temperature, it was lost. Train longer, with more data there or slower "
                "cooling, and compare with another method."
            )
    return warnings


def _sector(torsion: FloatArray, edges: FloatArray) -> NDArray[np.intp]:
    """Index of the sector of each angle."""
    return (np.searchsorted(edges, torsion, side="right") - 1) % len(edges)


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
