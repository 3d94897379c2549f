"""Blocks of a generator's latents, and proposals in a block that are reversible with respect to the base density."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openmm_bg.base import Base
from openmm_bg.coordinates.rotamers import Rotamers
from openmm_bg.density import FloatArray, LatentLabels, LatentProposals, Proposals

BLOCKS = ("global", "side_chain", "rotamer", "side_chains", "backbone", "frozen")
REDRAWN = ("side_chain", "independence")  # their new latents do not depend on the old ones
STEPLESS = (*REDRAWN, "rotamer")  # nothing to tune
THIRD, SPREAD = 2.0 * np.pi / 3.0, 0.3  # rad; how far a rotamer block turns, and by how much more or less at most


class LatentBlocks:
    """The latents of one density, and the blocks of them that a walk moves at once.

    Parameters
    ----------
    density : LatentProposals
        With `latent_labels` if blocks other than "global" are to be moved.
    kinds : sequence of str
        Of `BLOCKS`.
    stretch : int
        Residues of a "backbone" block.

    Attributes
    ----------
    base : Base
    rotamers : Rotamers or None
        Bonds that the "rotamer" block turns about.

    Raises
    ------
    ValueError
        If the density has no latents, or none of a kind.
    """

    def __init__(self, density: Proposals, kinds: list[str], stretch: int) -> None:
        if not isinstance(density, LatentProposals):
            raise ValueError(
                f"A latent walk moves in the latent space of a generator, and {type(density).__name__} has none (it "
                "needs base, to_latent and from_latent). Give a BoltzmannGenerator, or use kernel=Independence()."
            )
        self.base: Base = density.base
        labels: LatentLabels | None = getattr(density, "latent_labels", None)
        self.rotamers: Rotamers | None = getattr(density, "rotamers", None)
        found = {"global", *_kinds_of(labels), *(("rotamer",) if self.rotamers else ())}
        missing = [kind for kind in kinds if kind not in found]
        if missing:
            raise ValueError(
                f"The generator has no latents for the blocks {missing}; it has those for "
                f"{[kind for kind in BLOCKS if kind in found]}. "
                + (
                    "Only a generator of reduced coordinates tells side chains from the backbone: make it with "
                    'BoltzmannGenerator.from_system(..., coordinates="reduced"), or give LatentWalk(blocks=["global"]).'
                    if labels is None
                    else "Leave the others out of LatentWalk(blocks=...)."
                )
            )
        everything = np.ones(self.base.n_dof, dtype=bool)
        self._blocks: dict[str, NDArray[np.bool_]] = {"global": everything[None], "independence": everything[None]}
        if labels is not None:
            side_chain, backbone, frozen = (labels.kind == kind for kind in ("side_chain", "backbone", "frozen"))
            self._blocks["side_chain"] = _by_residue(side_chain, labels.residue)
            self._blocks["side_chains"] = side_chain[None]
            self._blocks["frozen"] = _by_residue(frozen, labels.residue)
            self._blocks["backbone"] = _stretches(_by_residue(backbone, labels.residue), stretch)

    def turned(self, positions: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
        """Configurations, shape (n, n_atoms, 3), with one side chain of a configuration in another rotamer.

        In a residue, each as likely as any other, one bond turns by about a third; every second time so does another
        one, if there is one. The way back is as likely as that there, and volumes stay the same.
        """
        assert self.rotamers is not None  # checked when made
        residues = np.unique(self.rotamers.residue)
        proposed = np.empty((n, *positions.shape))
        for row in proposed:
            bonds = rng.permutation(np.flatnonzero(self.rotamers.residue == rng.choice(residues)))
            bonds = bonds[: 1 + int(rng.random() < 0.5)]
            angles = rng.choice([-THIRD, THIRD], len(bonds)) + rng.uniform(-SPREAD, SPREAD, len(bonds))
            row[:] = self.rotamers.turned(positions, bonds, angles)
        return proposed

    def choose(self, kind: str, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Which latents move in each of n blocks of a kind, drawn without regard to any state; shape (n, n_dof)."""
        blocks = self._blocks[kind]
        return blocks[rng.integers(len(blocks), size=n)]


def redrawn(base: Base, latents: FloatArray, moves: NDArray[np.bool_], rng: np.random.Generator) -> FloatArray:
    """Latents, shape (n_dof,), of which some are drawn anew from the base: one row for each of `moves`, (n, n_dof)."""
    proposed: FloatArray = np.where(moves, base.draw(len(moves), rng), latents)
    return proposed


def stepped(
    base: Base, latents: FloatArray, moves: NDArray[np.bool_], step: float, rng: np.random.Generator
) -> FloatArray:
    """Latents of which some are moved by a step between 0 and 1; shapes as `redrawn`.

    Normal latents turn towards a fresh draw, z' = sqrt(1 - step^2) z + step xi (preconditioned Crank-Nicolson), which
    is reversible with respect to the standard normal distribution. Circles take a uniform step of at most step * pi
    either way, which is reversible with respect to the uniform distribution and to no other. Step one is a fresh draw
    from these two.
    """
    n = base.n_circles
    circles, normal = latents[:n], latents[n:]
    turned = circles + step * np.pi * rng.uniform(-1.0, 1.0, (len(moves), n))
    turned = np.remainder(turned + np.pi, 2.0 * np.pi) - np.pi
    mixed = np.sqrt(1.0 - step**2) * normal + step * rng.standard_normal((len(moves), len(normal)))
    proposed: FloatArray = np.where(moves, np.concatenate([turned, mixed], axis=1), latents)
    return proposed


def _kinds_of(labels: LatentLabels | None) -> set[str]:
    present = set() if labels is None else set(labels.kind.tolist())
    return present | ({"side_chains"} if "side_chain" in present else set())


def _by_residue(of_kind: NDArray[np.bool_], residue: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Masks of the latents of a kind, a row for each residue that has any."""
    rows = [of_kind & (residue == index) for index in np.unique(residue[of_kind])]
    return np.array(rows, dtype=bool).reshape(-1, len(residue))


def _stretches(residues: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """Masks of consecutive residues: each residue is in `length` of them, so that those at the ends move as often."""
    n = len(residues)
    windows = [residues[max(0, start) : start + length].any(axis=0) for start in range(1 - length, n)]
    return np.array(windows, dtype=bool).reshape(-1, residues.shape[1])
