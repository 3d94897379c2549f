"""How often a chain goes to and fro between phi < 0 and 0 < phi < 2.3 rad."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from openmm_bg.analysis.basins import in_rare_basin

_NO_EVENT_UPPER_BOUND = -math.log(0.05)  # Poisson: zero events have probability 5 % at a mean of 3.0


@dataclass(frozen=True)
class RoundTrips:
    """Round trips along a chain.

    Attributes
    ----------
    count : int
        Completed round trips: two crossings each.
    n_crossings : int
        Changes of side.
    duration : float
        Length of the chain in the unit that the caller chose (ps, s or samples).
    upper_bound : float
        95 % upper bound of the rate of crossings per unit of duration, 3 / duration, where none was seen; else NaN.
    """

    count: int
    n_crossings: int
    duration: float
    upper_bound: float


def round_trips(phi: ArrayLike, duration: float | None = None) -> RoundTrips:
    """Count round trips between the cores phi < 0 and 0 < phi < 2.3 rad.

    A chain stays on its side until it enters the other core, so that 2.3 < phi < pi, the far side of phi = -pi, is
    not a crossing.

    Parameters
    ----------
    phi : array_like, shape (n,)
        Radians in [-pi, pi], along a chain.
    duration : float, optional
        Length of the chain in any unit; by default the number of samples.
    """
    angles = np.asarray(phi, dtype=np.float64)
    if angles.ndim != 1 or not np.all(np.isfinite(angles)):
        raise ValueError(f"a chain of finite angles is needed, found an array of shape {angles.shape} or a NaN in it")
    length = float(len(angles)) if duration is None else float(duration)
    rare = in_rare_basin(angles)
    side = rare[rare | (angles < 0.0)]
    n_crossings = int(np.count_nonzero(side[1:] != side[:-1]))
    bound = _NO_EVENT_UPPER_BOUND / length if n_crossings == 0 and length > 0.0 else math.nan
    return RoundTrips(n_crossings // 2, n_crossings, length, bound)
