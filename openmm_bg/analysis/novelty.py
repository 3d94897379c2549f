"""Generated structures far from all training frames: which, how many by chance, and how they group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm.app
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from openmm_bg.analysis.chirality import wrong_hands
from openmm_bg.analysis.clashes import clash_counts
from openmm_bg.analysis.isomers import PeptideBonds
from openmm_bg.analysis.membership import in_nanometers
from openmm_bg.analysis.superposition import Indices, Superposed, clusters, superposed_atoms
from openmm_bg.density import FloatArray

Mask = NDArray[np.bool_]

_QUANTILE = 0.99  # of the training frames are known by the other half of them
_MOST_QUERIES, _MOST_SAMPLED = 1000, 1000  # training frames, evenly spaced
_MOST_FAR = 5000  # a square matrix of these is 200 MB
_FEWEST_FRAMES = 4


@dataclass(frozen=True)
class NovelCluster:
    """Generated structures far from all training frames and near each other.

    Attributes
    ----------
    members : ndarray of int
        Indices of the generated structures; first the representative, which deviates least from the others.
    deviation : float
        Deviation in nm of the representative from the nearest training frame.
    """

    members: Indices
    deviation: float

    @property
    def representative(self) -> int:
        """Index of the generated structure that stands for all."""
        return int(self.members[0])


@dataclass(frozen=True)
class NovelStructures:
    """What is far from all training frames among generated structures; made by `find_novel`.

    Attributes
    ----------
    deviations : ndarray, shape (n,)
        Deviation in nm of each generated structure from the nearest training frame; NaN for broken ones.
    cutoff : float
        A structure is far if it deviates by more, in nm.
    floor : float
        Share of training frames that are as far from the frames of the other half of the training: what perfect
        samples would have, at most.
    diameter : float
        Largest deviation within a cluster, in nm.
    broken : dict of str to int
        How many structures were left out, by reason.
    clusters : tuple of NovelCluster
        The largest first.
    representatives : ndarray, shape (n_clusters, n_atoms, 3)
        Generated structures, nm.
    known : ndarray, shape (n_known, n_atoms, 3)
        Training frames that stand for the known states, nm, that of the largest first.
    training : Superposed
        All training frames.
    atoms : ndarray of int
        Atoms that are superposed and compared.
    peptide_bonds : PeptideBonds
        Whether training frames have them cis or trans.
    """

    deviations: FloatArray = field(repr=False)
    cutoff: float
    floor: float
    diameter: float
    broken: dict[str, int]
    clusters: tuple[NovelCluster, ...]
    representatives: FloatArray = field(repr=False)
    known: FloatArray = field(repr=False)
    training: Superposed = field(repr=False)
    atoms: Indices = field(repr=False)
    peptide_bonds: PeptideBonds = field(repr=False)

    @property
    def n_whole(self) -> int:
        """Number of structures that are not broken."""
        return int(np.count_nonzero(np.isfinite(self.deviations)))

    @property
    def n_far(self) -> int:
        """Number of structures beyond the cutoff."""
        return int(np.count_nonzero(self.deviations > self.cutoff))

    @property
    def summary(self) -> str:
        """What was found, in words."""
        reasons = ", ".join(f"{count} with {reason}" for reason, count in self.broken.items() if count)
        share = f"{self.n_far / self.n_whole:.1%}" if self.n_whole else "none"
        return (
            f"{len(self.deviations)} structures, {len(self.deviations) - self.n_whole} broken"
            f"{f' ({reasons})' if reasons else ''}; {self.n_far} of the others ({share}) deviate by more than "
            f"{self.cutoff:.3f} nm from every training frame, in {len(self.clusters)} clusters. Of the training frames "
            f"{self.floor:.1%} are as far from the other half."
        )


def find_novel(
    generated: Any,
    training: Any,
    topology: openmm.app.Topology,
    *,
    cutoff: Any = None,
    energies: ArrayLike | None = None,
    atoms: ArrayLike | None = None,
    n_known: int = 4,
) -> NovelStructures:
    """Find the generated structures that are far from all training frames, and group them.

    Deviations are root mean squares over the backbone (N, CA, C), after the best superposition; over all atoms but
    hydrogens in molecules of fewer than four residues. Mirror images are not superposed. Broken structures are counted
    and left out: those that are not finite or have no finite energy, a centre of the other hand than the training
    frames, or more clashes (`clash_counts`) than any of 1,000 training frames. Clusters are by complete linkage, about
    as wide as the known states. What is far is not yet new: `judge_novelty` relaxes and simulates.

    Parameters
    ----------
    generated : array_like, Quantity or mdtraj.Trajectory
        Shape (n, n_atoms, 3), arrays in nm, molecules whole.
    training : array_like, Quantity or mdtraj.Trajectory
        All frames the generator was trained on, in the order in which they were sampled.
    topology : openmm.app.Topology
        Of both.
    cutoff : float or Quantity, optional
        Deviation from the nearest training frame in nm beyond which a structure is far. By default what 99 % of the
        training frames keep to the other half of them, first against second half in time.
    energies : array_like, shape (n,), optional
        Energies of the generated structures, such as `SystemPotential` gives.
    atoms : array_like of int, optional
        Atoms to compare, instead of those above.
    n_known : int
        How many known states to tell apart, at most.

    Returns
    -------
    NovelStructures

    Raises
    ------
    ValueError
        If shapes do not fit, training frames are fewer than four or not finite, or so many structures are far that they
        cannot be clustered.
    """
    chosen = superposed_atoms(topology, atoms)
    x, finite = _structures(generated, topology, energies)
    frames = Superposed(training, chosen)
    sample = in_nanometers(_rows(training, _spaced(len(frames), _MOST_SAMPLED)))
    if len(frames) < _FEWEST_FRAMES or sample.shape[1:] != x.shape[1:] or not np.isfinite(sample).all():
        raise ValueError(
            f"{len(frames)} training frames of shape {sample.shape[1:]} were given; expected {_FEWEST_FRAMES} or more, "
            f"all finite, of the topology's {x.shape[1]} atoms"
        )
    if n_known < 1:
        raise ValueError(f"n_known is {n_known}; expected 1 or more")
    broken, whole = _broken(x, finite, sample, topology)
    own = _between_halves(frames)
    limit = float(np.quantile(own, _QUANTILE)) if cutoff is None else _positive(cutoff)
    states, width = _known_states(sample, chosen, n_known)
    diameter = max(limit, 2.0 * width)

    deviations = np.full(len(x), np.nan)
    deviations[whole] = Superposed(x[whole], chosen).nearest(frames) if whole.any() else []
    far = np.flatnonzero(deviations > limit)
    if len(far) > _MOST_FAR:
        raise ValueError(f"{len(far)} structures are far from all training frames; give so few that {_MOST_FAR} are")
    found = clusters(Superposed(x[far], chosen).pairwise(), diameter=diameter) if len(far) else []
    grouped = tuple(NovelCluster(far[members], float(deviations[far[members[0]]])) for members in found)
    return NovelStructures(
        deviations=deviations,
        cutoff=limit,
        floor=float(np.mean(own > limit)),
        diameter=diameter,
        broken=broken,
        clusters=grouped,
        representatives=x[[cluster.representative for cluster in grouped]],
        known=states,
        training=frames,
        atoms=chosen,
        peptide_bonds=PeptideBonds.of(sample, topology),
    )


def _structures(
    generated: Any, topology: openmm.app.Topology, energies: ArrayLike | None
) -> tuple[FloatArray, tuple[Mask, Mask]]:
    """Positions, and which of them and of their energies are finite."""
    x = in_nanometers(generated)
    if x.shape[1] != topology.getNumAtoms():
        raise ValueError(f"generated structures have {x.shape[1]} atoms, the topology has {topology.getNumAtoms()}")
    u = np.zeros(len(x)) if energies is None else np.asarray(energies, dtype=np.float64)
    if u.shape != (len(x),):
        raise ValueError(f"energies have shape {u.shape}; expected one for each of the {len(x)} structures")
    return x, (np.asarray(np.isfinite(x).all(axis=(1, 2))), np.isfinite(u))


def _broken(
    x: FloatArray, finite: tuple[Mask, Mask], sample: FloatArray, topology: openmm.app.Topology
) -> tuple[dict[str, int], Mask]:
    """Count structures by the first fault they have; and which have none."""
    whole = np.ones(len(x), dtype=bool)
    counts = {}

    def leave_out(reason: str, faulty: Mask) -> None:
        counts[reason] = int(np.count_nonzero(whole & faulty))
        whole[faulty] = False

    leave_out("positions that are not finite", ~finite[0])
    leave_out("an energy that is not finite", ~finite[1])
    for reason, count, most in (
        ("a centre of the wrong hand", lambda part: wrong_hands(part, sample, topology), 0),
        ("clashes", lambda part: clash_counts(part, topology), int(clash_counts(sample, topology).max())),
    ):
        faulty = np.zeros(len(x), dtype=bool)
        faulty[whole] = count(x[whole]) > most
        leave_out(reason, faulty)
    return counts, whole


def _between_halves(frames: Superposed) -> FloatArray:
    """Deviations of training frames from the nearest of the other half in time."""
    middle = len(frames) // 2
    halves = frames[:middle], frames[middle:]
    parts = [one[_spaced(len(one), _MOST_QUERIES)].nearest(other) for one, other in (halves, reversed(halves))]
    return np.concatenate(parts)


def _known_states(sample: FloatArray, atoms: Indices, n_known: int) -> tuple[FloatArray, float]:
    """Medoids of the training frames' clusters, and the median deviation of a frame from its own."""
    deviations = Superposed(sample, atoms).pairwise()
    found = clusters(deviations, n_clusters=min(n_known, len(sample)))
    spread = np.concatenate([deviations[members[0], members] for members in found])
    return sample[[members[0] for members in found]], float(np.median(spread))


def _rows(positions: Any, rows: Indices) -> Any:
    """Some frames of an array, a Quantity or a Trajectory, before any conversion copies all of them."""
    x = getattr(positions, "xyz", positions)
    return np.asarray(x.value_in_unit(unit.nanometer) if unit.is_quantity(x) else x)[rows]


def _spaced(n: int, most: int) -> Indices:
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, most)).astype(np.int64))


def _positive(cutoff: Any) -> float:
    value = float(cutoff.value_in_unit(unit.nanometer) if unit.is_quantity(cutoff) else cutoff)
    if not (np.isfinite(value) and value > 0.0):
        raise ValueError(f"the cutoff is {value} nm; give a positive one")
    return value
