"""Sizes of the split flow."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SplitConfig:
    """Sizes of a split flow.

    Attributes
    ----------
    torsion_layers, torsion_bins : int
        Couplings among the torsions of each channel, bins of their splines.
    linear_layers, linear_bins : int
        The same for the couplings of the other features.
    width, key_width : int
        Numbers that describe a residue inside the networks; width of queries and keys of the attention, even.
    affine_hidden : int
        Width of the networks of means and covariances.
    linear_bound : float
        Half width of the splines of linear features, in standard deviations; the identity outside.
    group_size : int
        Largest number of linear features whose covariance is modelled in full.
    concentration : float
        Of the von Mises distribution that latents on circles have; zero is the uniform one.
    attention : bool
        Without it the networks of a residue see that residue only: what attention is worth is measured so.
    split : bool
        Without it backbone and side chains are one channel.
    temperature_range : tuple of (float, float), optional
        In K: the density depends on the temperature, and is meant to be trained between these two. None: one density.

    Raises
    ------
    ValueError
        For sizes that are not positive, an odd `key_width`, or a range that does not rise.
    """

    torsion_layers: int = 4
    torsion_bins: int = 16
    linear_layers: int = 2
    linear_bins: int = 8
    width: int = 64
    key_width: int = 32
    affine_hidden: int = 128
    linear_bound: float = 5.0
    group_size: int = 64
    concentration: float = 0.0
    attention: bool = True
    split: bool = True
    temperature_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        sizes = (self.torsion_bins, self.linear_bins, self.width, self.key_width, self.affine_hidden, self.group_size)
        if min(sizes) < 1 or min(self.torsion_layers, self.linear_layers) < 0 or not 0.0 < self.linear_bound < math.inf:
            raise ValueError(f"{self}: expected positive sizes, and numbers of layers of at least 0.")
        if self.key_width % 2:
            raise ValueError(f"key_width is {self.key_width}; expected an even number, as rotations turn pairs.")
        if not 0.0 <= self.concentration < 500.0:
            raise ValueError(f"concentration is {self.concentration}; expected a number from 0 (uniform) to 500.")
        if self.temperature_range is None:
            return
        low, high = (float(temperature) for temperature in self.temperature_range)
        if not 0.0 < low < high < math.inf:
            raise ValueError(f"temperature_range is {self.temperature_range}; expected two rising temperatures in K.")
        object.__setattr__(self, "temperature_range", (low, high))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the model file."""
        return asdict(self)
