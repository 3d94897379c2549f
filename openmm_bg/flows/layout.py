"""Where the features of a flow belong in the molecule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self


class Place(NamedTuple):
    """Where one feature belongs.

    Attributes
    ----------
    atom : int
        Index of the atom that it places: features with near indices are near along the molecule.
    residue, chain : int
        Index of that atom's residue and of its chain.
    side_chain : bool
        Whether it belongs to a side chain and not to the backbone.
    generated : bool
        Whether a reduced generator models it; the others are frozen. In a full one all are generated.
    """

    atom: int
    residue: int = 0
    chain: int = 0
    side_chain: bool = False
    generated: bool = True


@dataclass(frozen=True)
class Layout:
    """Places of the circular and of the linear features, each in their order.

    Attributes
    ----------
    circular, linear : tuple of Place
    split : bool
        Whether side chains are to be modelled given the backbone, each residue by itself: then latents of a side
        chain move nothing else.
    """

    circular: tuple[Place, ...]
    linear: tuple[Place, ...]
    split: bool = False

    @classmethod
    def of_atoms(cls, circular: Sequence[int], linear: Sequence[int]) -> Self:
        """Return the layout of features of one chain without side chains, from the atoms that they place."""
        return cls(tuple(map(Place, circular)), tuple(map(Place, linear)))

    @property
    def generated_linear(self) -> list[int]:
        """Indices of the linear features that are generated."""
        return [i for i, place in enumerate(self.linear) if place.generated]

    @property
    def frozen_linear(self) -> list[int]:
        """Indices of the linear features that are frozen."""
        return [i for i, place in enumerate(self.linear) if not place.generated]

    def generated(self) -> Layout:
        """Return the layout of what is generated; all circles are."""
        return Layout(self.circular, tuple(place for place in self.linear if place.generated), self.split)
