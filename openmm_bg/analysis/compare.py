"""Every structural metric of an ensemble beside its reference, in one call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm.app
from numpy.typing import ArrayLike

from openmm_bg.analysis.clashes import clash_counts, inverted_counts
from openmm_bg.analysis.contacts import MINIMUM_SEPARATION, ContactDifference, contact_difference
from openmm_bg.analysis.distances import DistanceDistortion, distance_distortion
from openmm_bg.analysis.divergences import Divergence
from openmm_bg.analysis.ensembles import as_ensemble
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.fluctuations import Fluctuations, radius_of_gyration, rmsf
from openmm_bg.analysis.torsion_distributions import TorsionComparison, compare_torsions


@dataclass(frozen=True)
class EnsembleComparison:
    """An ensemble of a protein beside a reference; made by `compare_ensembles`.

    Attributes
    ----------
    distances : DistanceDistortion
        Angstrom.
    fluctuations : tuple of two Fluctuations
        RMSF of N, CA and C in the ensemble and in the reference, nm.
    radius_of_gyration : tuple of two Estimate
        Of the ensemble and of the reference, nm.
    contacts : ContactDifference or None
        None for a molecule of three residues or fewer.
    torsions : TorsionComparison
    clashes, inverted_centers : tuple of two Estimate
        Mean number per structure, in the ensemble and in the reference: overlapping atoms, and stereocentres of another
        hand than in most of the reference.
    """

    distances: DistanceDistortion
    fluctuations: tuple[Fluctuations, Fluctuations] = field(repr=False)
    radius_of_gyration: tuple[Estimate, Estimate]
    contacts: ContactDifference | None
    torsions: TorsionComparison = field(repr=False)
    clashes: tuple[Estimate, Estimate]
    inverted_centers: tuple[Estimate, Estimate]

    def rows(self) -> list[tuple[str, str, Estimate, Estimate]]:
        """Each metric as (name, unit, value, what to compare it with: its floor, or the value of the reference).

        Divergences are means over residues; their errors are the means of the residues' errors, which is what they are
        if all residues go wrong together, and too large if not.
        """
        distances = self.distances
        rows = [
            ("distance distortion", "angstrom", distances.value, distances.floor),
            ("distance distortion per structure", "angstrom", distances.per_structure, distances.per_structure_floor),
            ("mean RMSF", "nm", self.fluctuations[0].mean, self.fluctuations[1].mean),
            ("radius of gyration", "nm", *self.radius_of_gyration),
        ]
        if self.contacts is not None:
            rows.append(("contact probabilities, mean difference", "", self.contacts.value, self.contacts.floor))
        for name, group in (("phi, psi", self.torsions.ramachandran), ("chi", self.torsions.chi)):
            if group:
                each = group.values()
                rows += [
                    (f"{name}: total variation", "", *_mean(each, "total_variation")),
                    (f"{name}: Jensen-Shannon divergence", "bits", *_mean(each, "jensen_shannon")),
                ]
        rows.append(("clashes per structure", "", *self.clashes))
        rows.append(("inverted centres per structure", "", *self.inverted_centers))
        return rows

    def __str__(self) -> str:
        lines = [f"{'':44}{'value':>22}{'floor or reference':>22}"]
        for name, dimension, value, beside in self.rows():
            lines.append(f"{f'{name} [{dimension}]' if dimension else name:44}{value!s:>22}{beside!s:>22}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Return the rows for a JSON file: unit, value and reference of each metric."""
        return {
            name: {"unit": dimension, "value": value.as_json(), "reference": beside.as_json()}
            for name, dimension, value, beside in self.rows()
        }


def compare_ensembles(
    generated: Any,
    reference: Any,
    topology: openmm.app.Topology,
    *,
    weights: ArrayLike | None = None,
    reference_weights: ArrayLike | None = None,
    rng: np.random.Generator | int | None = 0,
) -> EnsembleComparison:
    """Compare the structures of a generator, or of a chain, with those of a reference, by every metric.

    Parameters
    ----------
    generated, reference : array_like, Quantity, mdtraj.Trajectory or Weights
        Positions, shape (n, n_atoms, 3), arrays in nm, molecules whole, at least four frames; chains in the order in
        which they were sampled.
    topology : openmm.app.Topology
        Of a peptide or protein.
    weights, reference_weights : array_like, shape (n,), optional
        Weights of independent samples; without them all frames count alike, and the autocorrelation along them goes
        into the errors.
    rng : Generator, int or None
        Source of the resamples for the errors.

    Returns
    -------
    EnsembleComparison
        Print it for a table.

    Raises
    ------
    ValueError
        If positions or weights do not fit the topology, or it holds no amino acid.
    """
    ours, theirs = as_ensemble(generated, topology, weights), as_ensemble(reference, topology, reference_weights)
    sides = (ours, theirs)
    generator = np.random.default_rng(rng)
    gyration = [side.weights.mean(radius_of_gyration(side.positions, topology)) for side in sides]
    clashes = [side.weights.mean(clash_counts(side.positions, topology)) for side in sides]
    inverted = [side.weights.mean(inverted_counts(side.positions, topology, theirs.positions)) for side in sides]
    fluctuations = [rmsf(side, topology, rng=generator) for side in sides]
    several = topology.getNumResidues() > MINIMUM_SEPARATION
    return EnsembleComparison(
        distances=distance_distortion(ours, theirs, topology),
        fluctuations=(fluctuations[0], fluctuations[1]),
        radius_of_gyration=(gyration[0], gyration[1]),
        contacts=contact_difference(ours, theirs, topology) if several else None,
        torsions=compare_torsions(ours, theirs, topology, rng=generator),
        clashes=(clashes[0], clashes[1]),
        inverted_centers=(inverted[0], inverted[1]),
    )


def _mean(divergences: Iterable[Divergence], measure: str) -> tuple[Estimate, Estimate]:
    """Mean over residues of a divergence and of its floor."""
    each = list(divergences)
    found = []
    for name in (measure, f"{measure}_floor"):
        estimates: list[Estimate] = [getattr(divergence, name) for divergence in each]
        found.append(
            Estimate(
                float(np.mean([e.value for e in estimates])),
                float(np.mean([e.error for e in estimates])),
                min(e.n_effective for e in estimates),
            )
        )
    return found[0], found[1]
