"""Checks of the basins of all residues; each reports the worst residue and basin."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from openmm_bg.analysis.basins import BASIN_NAMES, assign_basins
from openmm_bg.analysis.checks import Check, grade, percent, sigma_grade
from openmm_bg.analysis.estimate import z_score
from openmm_bg.analysis.timeseries import chain_mean
from openmm_bg.report.records import Chain
from openmm_bg.report.results import BG_LANGEVIN, FEWEST_STATES, GENERATOR, LANGEVIN, Results

_IMPORTANT = 0.005  # population
_ABSENT = 0.1 * _IMPORTANT
_ENTRIES_ENOUGH, _ENTRIES_LEAST = 20, 1
_INDEPENDENT_ENOUGH, _INDEPENDENT_LEAST = 50.0, 10.0


@dataclass(frozen=True)
class Place:
    """A basin of one residue.

    Attributes
    ----------
    pair : int
        Index of the residue among those with backbone torsions.
    basin : str
        Name of the basin.
    label : str
        Residue and basin in words.
    """

    pair: int
    basin: str
    label: str

    @property
    def index(self) -> int:
        """Index of the basin in `BASINS`."""
        return BASIN_NAMES.index(self.basin)


def important_places(results: Results) -> list[Place]:
    """Return the basins that the chain, the weights or Langevin dynamics alone populate by 0.5 % or more.

    A residue of which all populate one and the same basin is left out: there is nothing to enter or to leave.
    """
    places: list[Place] = []
    for pair, residue in enumerate(results.pair_names):
        populated = [
            name
            for name in BASIN_NAMES
            if any(method.residues[pair].populations[name].value >= _IMPORTANT for method in results.methods.values())
        ]
        if len(populated) > 1:
            places += [Place(pair, name, f"{residue} {name}") for name in populated]
    return places


def basin_checks(results: Results) -> list[Check]:
    """Return the checks of basins that a run allows."""
    places = important_places(results)
    chain = results.chain
    checks = []
    if chain is not None and len(chain) >= FEWEST_STATES and chain.proposed.any():
        checks.append(_lost(chain, places))
    if not places:
        return checks
    if chain is not None and BG_LANGEVIN in results.methods:
        checks += [_independent(results, places), _halves(chain, places)]
    if LANGEVIN in results.methods and len(results.methods) > 1:
        checks.append(_seen_by_dynamics(results, places))
    if BG_LANGEVIN in results.methods and GENERATOR in results.methods:
        checks.append(_agreement(results, places))
    return checks


def _lost(chain: Chain, places: list[Place]) -> Check:
    """A generator that lost a basin shows no, or hardly any, accepted way into it or out of it."""
    name = "no basin lost"
    if not places:
        return Check(name, "warning", "There are no two basins of a residue between which moves could be counted.")
    labels = assign_basins(chain.phi, chain.psi)
    taken = np.flatnonzero(chain.accepted)
    taken = taken[taken > 0]
    before, after = labels[taken - 1], labels[taken]
    entered, left = [], []
    for place in places:
        was, now = before[:, place.pair] == place.index, after[:, place.pair] == place.index
        entered.append(int(np.count_nonzero(now & ~was)))
        left.append(int(np.count_nonzero(was & ~now)))
    fewest = [min(counts) for counts in zip(entered, left, strict=True)]
    worst = int(np.argmin(fewest))
    shown = [
        f"{place.label} entered {entered[i]:,} and left {left[i]:,} times by accepted proposals"
        for i, place in enumerate(places)
        if place.pair == places[worst].pair
    ]
    text = "Every basin of 0.5 % or more is entered and left. " if fewest[worst] else "A basin has no way in or out. "
    return Check(name, grade(fewest[worst], _ENTRIES_ENOUGH, _ENTRIES_LEAST), text + "; ".join(shown) + ".")


def _independent(results: Results, places: list[Place]) -> Check:
    residues = results.methods[BG_LANGEVIN].residues
    n_effective = [residues[place.pair].populations[place.basin].n_effective for place in places]
    worst = int(np.argmin(n_effective))
    return Check(
        "independent samples",
        grade(n_effective[worst], _INDEPENDENT_ENOUGH, _INDEPENDENT_LEAST),
        f"For its slowest basin, {places[worst].label}, the chain is worth {n_effective[worst]:,.0f} independent "
        "samples.",
    )


def _halves(chain: Chain, places: list[Place]) -> Check:
    labels = assign_basins(chain.phi, chain.psi)
    middle = len(labels) // 2
    scores = []
    for place in places:
        inside = (labels[:, place.pair] == place.index).astype(np.float64)
        scores.append(_distance(z_score(chain_mean(inside[:middle]), chain_mean(inside[middle:]))))
    worst = int(np.argmax(scores))
    label = places[worst].label
    text = f"First and second half of the chain differ by at most {scores[worst]:.1f} standard errors ({label})."
    if scores[worst] == math.inf:
        text = f"One half of the chain never entered or never left {label}."
    return Check("both halves agree", sigma_grade(scores[worst], _n_residues(places)), text)


def _seen_by_dynamics(results: Results, places: list[Place]) -> Check:
    """Dynamics started from the same structure but never saw the generator: what it finds has to be here."""
    name = "basins seen by dynamics"
    alone = results.methods[LANGEVIN]
    others = [results.methods[key] for key in (BG_LANGEVIN, GENERATOR) if key in results.methods]
    for place in sorted(places, key=lambda p: -alone.residues[p.pair].populations[p.basin].value):
        seen = alone.residues[place.pair].populations[place.basin]
        here = [method.residues[place.pair].populations[place.basin] for method in others]
        if seen.value >= _IMPORTANT and all(estimate.value < _ABSENT for estimate in here):
            found = ", ".join(f"{percent(e)} ({m.title})" for m, e in zip(others, here, strict=True))
            return Check(name, "bad", f"Langevin alone has {percent(seen)} in {place.label}; absent here: {found}.")
    return Check(name, "good", "Every basin that Langevin alone populates by 0.5 % or more is populated here.")


def _agreement(results: Results, places: list[Place]) -> Check:
    chain, weights = results.methods[BG_LANGEVIN], results.methods[GENERATOR]
    pairs = [
        (chain.residues[p.pair].populations[p.basin], weights.residues[p.pair].populations[p.basin]) for p in places
    ]
    scores = [_distance(z_score(first, second)) for first, second in pairs]
    worst = int(np.argmax(scores))
    first, second = pairs[worst]
    text = (
        f"Largest difference, {places[worst].label}: {percent(first)} (chain) against {percent(second)} "
        "(reweighted generator)"
    )
    if scores[worst] == math.inf:
        text += ", one of them without an error because it never entered or never left the basin."
    else:
        text += f", {scores[worst]:.1f} standard errors."
    return Check("chain and reweighting agree", sigma_grade(scores[worst], _n_residues(places)), text)


def _distance(z: float) -> float:
    """Size of a difference; infinite where there is no error to compare it with."""
    return math.inf if math.isnan(z) else abs(z)


def _n_residues(places: list[Place]) -> int:
    return len({place.pair for place in places})
