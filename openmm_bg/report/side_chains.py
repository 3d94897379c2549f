"""Side chains in a run: the torsions that are recorded, the one that is shown, and how fast each sampler turns them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import openmm.app

from openmm_bg.analysis.dihedrals import torsion_angles
from openmm_bg.analysis.rotamers import RotamerRelaxation, assign_rotamers, relaxation_quantile, rotamer_relaxation
from openmm_bg.analysis.side_chains import SideChainTorsion, side_chain_torsions
from openmm_bg.density import FloatArray
from openmm_bg.report.records import Chain

_FEWEST_TRANSITIONS = 5
_FEWEST_STATES = 10
_SLOW = 0.9


def chi1_torsions(topology: openmm.app.Topology) -> list[SideChainTorsion]:
    """Return chi1 of every residue whose side chain can turn."""
    return [torsion for torsion in side_chain_torsions(topology) if torsion.name == "chi1" and not torsion.in_ring]


def chi1_angles(positions: FloatArray, torsions: list[SideChainTorsion]) -> FloatArray:
    """Return the torsions in radians, shape (..., n_atoms, 3) to (..., n)."""
    return torsion_angles(positions, np.array([t.atoms for t in torsions], dtype=np.int64).reshape(-1, 4))


def shown_torsion(positions: FloatArray, torsions: list[SideChainTorsion]) -> int:
    """Choose the torsion to show: the slowest of those that changed their rotamer a few times, else the fastest.

    Parameters
    ----------
    positions : ndarray, shape (n_chains, n_frames, n_atoms, 3)
    torsions : list of SideChainTorsion
    """
    chi = chi1_angles(positions, torsions)
    counts = np.zeros(len(torsions), dtype=np.int64)
    for chain in chi:
        for index in range(len(torsions)):
            counts[index] += np.count_nonzero(np.diff(assign_rotamers(chain[:, index])))
    moved = np.flatnonzero(counts >= _FEWEST_TRANSITIONS)
    if len(moved):
        return int(moved[counts[moved].argmin()])
    return int(counts.argmax()) if len(counts) else 0


@dataclass(frozen=True)
class SideChainSpeed:
    """How fast chi1 of all residues relaxes in two chains, in seconds of wall time.

    Attributes
    ----------
    names : list of str
        The torsions.
    moves, alone : list of RotamerRelaxation
        In the chain with moves, and in dynamics alone.
    """

    names: list[str]
    moves: list[RotamerRelaxation]
    alone: list[RotamerRelaxation]

    @property
    def median_gain(self) -> tuple[float, float, float]:
        """How many times faster the median is with moves, and its 95 % bounds; NaN if it is not known."""
        return self._gain(0.5)

    @property
    def slow_gain(self) -> tuple[float, float, float]:
        """The same of the slowest tenth."""
        return self._gain(_SLOW)

    @property
    def n_resolved(self) -> tuple[int, int]:
        """Torsions whose relaxation time is known, with moves and alone."""
        return (_resolved(self.moves), _resolved(self.alone))

    def _gain(self, probability: float) -> tuple[float, float, float]:
        moves, alone = (relaxation_quantile(found, probability) for found in (self.moves, self.alone))
        return alone[0] / moves[0], _ratio(alone[1], moves[2]), _ratio(alone[2], moves[1])


def side_chain_speed(chain: Chain, alone: Chain, names: list[str]) -> SideChainSpeed | None:
    """Compare two chains, each over its wall time; None if there is nothing to compare.

    What both chains saw tells of each which rotamers it should have visited.
    """
    both = (chain, alone)
    if not names or any(c.chi.shape != (len(c), len(names)) or len(c) < _FEWEST_STATES for c in both):
        return None
    found: tuple[list[RotamerRelaxation], list[RotamerRelaxation]] = ([], [])
    for index in range(len(names)):
        seen = np.mean([np.bincount(assign_rotamers(c.chi[:, index]), minlength=3) / len(c) for c in both], axis=0)
        for kept, c in zip(found, both, strict=True):
            interval = float(c.seconds[-1]) / len(c)
            kept.append(rotamer_relaxation(c.chi[:, index], interval=interval, populations=seen))
    return SideChainSpeed(names, *found)


def _resolved(relaxations: list[RotamerRelaxation]) -> int:
    return sum(relaxation.status == "resolved" for relaxation in relaxations)


def _ratio(a: float, b: float) -> float:
    return math.inf if b == 0.0 else 0.0 if b == math.inf else a / b
