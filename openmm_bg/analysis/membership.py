"""Which basin a configuration lies in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from openmm_bg.density import FloatArray

Mask = Callable[[FloatArray], ArrayLike]
Labels = NDArray[np.int64]

ELSEWHERE = -1  # label of a configuration in none of the basins


def assign(positions: Any, basins: Mapping[str, Mask]) -> Labels:
    """Return the index of the basin of each configuration, -1 for none; shape (n, n_atoms, 3) nm to (n,).

    Raises
    ------
    ValueError
        If a function returns anything but one boolean a configuration, or two basins overlap.
    """
    x = in_nanometers(positions)
    labels = np.full(len(x), ELSEWHERE, dtype=np.int64)
    names = list(basins)
    for index, (name, mask) in enumerate(basins.items()):
        inside = np.asarray(mask(x))
        if inside.shape != (len(x),) or inside.dtype != np.bool_:
            raise ValueError(
                f"basin {name!r} gave {inside.dtype} of shape {inside.shape} for {len(x)} configurations; expected one "
                "boolean for each"
            )
        twice = inside & (labels >= 0)
        if twice.any():
            other = names[labels[np.argmax(twice)]]
            raise ValueError(f"{int(twice.sum())} samples lie in {other!r} and in {name!r}; basins must not overlap")
        labels[inside] = index
    return labels


def in_nanometers(positions: Any) -> FloatArray:
    """Return positions of shape (n, n_atoms, 3) in nm, given as an array, a Quantity or an mdtraj Trajectory."""
    x = getattr(positions, "xyz", positions)
    x = np.asarray(x.value_in_unit(unit.nanometer) if unit.is_quantity(x) else x, dtype=np.float64)
    if x.ndim != 3 or x.shape[2] != 3:
        raise ValueError(f"positions have shape {x.shape}; expected (n, n_atoms, 3), in nm")
    return x
