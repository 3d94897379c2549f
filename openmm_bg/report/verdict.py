"""Whether to believe the numbers of a run: the checks, and a plain sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from openmm_bg.analysis.basins import BASIN_NAMES, assign_basins
from openmm_bg.analysis.estimate import Estimate, z_score
from openmm_bg.analysis.timeseries import chain_mean
from openmm_bg.analysis.weights import PARETO_K_LIMIT
from openmm_bg.report.results import BG_LANGEVIN, GENERATOR, Results, important_basins

Status = Literal["good", "warning", "bad"]

_ACCEPTED_ENOUGH, _ACCEPTED_LEAST = 0.10, 0.01
_INDEPENDENT_ENOUGH, _INDEPENDENT_LEAST = 50.0, 10.0
_ESS_ENOUGH, _ESS_LEAST = 100.0, 20.0
_TRIPS_ENOUGH, _TRIPS_LEAST = 20, 3
_ENTRIES_LEAST = 20
_LARGEST_SHARE = 0.05
_WAIT_SHORT, _WAIT_LONG = 0.02, 0.2
_OFF_SUPPORT_FEW, _OFF_SUPPORT_MOST = 0.01, 0.1
_SIGMA_WARNING, _SIGMA_BAD = 2.5, 4.0  # the largest of several differences, so wider than two


@dataclass(frozen=True)
class Check:
    """One reason to believe the numbers, or not."""

    name: str
    status: Status
    text: str


@dataclass(frozen=True)
class Verdict:
    """A plain answer and the checks behind it."""

    answer: Literal["believe", "believe with care", "do not believe", "nothing to judge"]
    sentence: str
    checks: list[Check]


def judge(results: Results) -> Verdict:
    """Check a run and say whether its populations and free energies can be believed."""
    checks = [*_chain_checks(results), *_weight_checks(results), *_agreement_checks(results), *_energy_checks(results)]
    bad = [check.name for check in checks if check.status == "bad"]
    warnings = [check.name for check in checks if check.status == "warning"]
    if not checks:
        return Verdict("nothing to judge", "Nothing has been sampled yet, so there is nothing to believe or not.", [])
    if bad:
        return Verdict("do not believe", f"Do not believe these numbers: {_listed(bad)} failed.", checks)
    if results.chain is None or results.weights is None:
        sentence = "Believe these numbers with care: only one of the two independent estimates is there to compare."
        return Verdict("believe with care", sentence, checks)
    if warnings:
        return Verdict("believe with care", f"Believe these numbers with care: see {_listed(warnings)}.", checks)
    return Verdict("believe", "Believe these numbers: every check below passed.", checks)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _grade(value: float, enough: float, least: float) -> Status:
    return "good" if value >= enough else "warning" if value >= least else "bad"


def _chain_checks(results: Results) -> list[Check]:
    checks = []
    if results.acceptance is not None:
        fraction = results.acceptance.overall.value
        checks.append(
            Check(
                "acceptance",
                _grade(fraction, _ACCEPTED_ENOUGH, _ACCEPTED_LEAST),
                f"{fraction:.1%} of {results.acceptance.n_proposed:,} proposals were accepted.",
            )
        )
        checks += [_basin_check(results), _wait_check(results)]
    method, chain = results.method(BG_LANGEVIN), results.chain
    if method is None or method.trips is None or chain is None:
        return checks
    checks.append(
        Check(
            "round trips",
            _grade(method.trips.count, _TRIPS_ENOUGH, _TRIPS_LEAST),
            f"The chain went {method.trips.count:,} times from phi < 0 to 0 < phi < 2.3 rad and back.",
        )
    )
    fraction = int(chain.off_support.sum()) / max(1, int(chain.proposed.sum()))
    checks.append(
        Check(
            "chain on the support",
            "good" if fraction < _OFF_SUPPORT_FEW else "warning" if fraction < _OFF_SUPPORT_MOST else "bad",
            f"At {fraction:.1%} of the proposals the chain was in a state that the generator cannot propose.",
        )
    )
    names = important_basins(results)
    n_effective = min(method.statistics.populations[name].n_effective for name in names)
    checks.append(
        Check(
            "independent samples",
            _grade(n_effective, _INDEPENDENT_ENOUGH, _INDEPENDENT_LEAST),
            f"For its slowest basin the chain is worth {n_effective:,.0f} independent samples.",
        )
    )
    checks.append(_halves_check(results, names))
    return checks


def _basin_check(results: Results) -> Check:
    """A generator that lost a basin shows no, or hardly any, accepted way into it."""
    assert results.acceptance is not None
    assert results.chain is not None
    chain, pair = results.chain, results.pair
    if not results.acceptance.by_basin:
        return Check("no basin lost", "warning", "There is no backbone torsion to tell basins by.")
    taken = np.flatnonzero(chain.accepted)
    entered = np.bincount(assign_basins(chain.phi[taken, pair], chain.psi[taken, pair]), minlength=len(BASIN_NAMES))
    parts, worst = [], math.inf
    for name in important_basins(results):
        n_entered = int(entered[BASIN_NAMES.index(name)])
        out = results.acceptance.by_basin.get(name)
        n_left = 0.0 if out is None else out.value * out.n_effective
        worst = min(worst, n_entered, n_left)
        rate = "never left by a proposal" if out is None else f"{out.value:.0%} accepted from it"
        parts.append(f"{name}: {rate}, {n_entered:,} accepted into it")
    text = "Every basin of more than 0.5 % is entered and left. " if worst > 0 else "A basin has no way in or out. "
    return Check("no basin lost", _grade(worst, _ENTRIES_LEAST, 1), text + "; ".join(parts) + ".")


def _wait_check(results: Results) -> Check:
    """A chain in a state that the generator hardly knows refuses everything until dynamics leads it out."""
    assert results.chain is not None
    accepted = results.chain.accepted[results.chain.proposed]
    borders = np.concatenate([[-1], np.flatnonzero(accepted), [len(accepted)]])
    longest = int(np.diff(borders).max()) - 1
    share = longest / len(accepted)
    return Check(
        "longest wait",
        "good" if share < _WAIT_SHORT else "warning" if share < _WAIT_LONG else "bad",
        f"At most {longest:,} proposals in a row were rejected ({share:.2%} of the chain).",
    )


def _halves_check(results: Results, names: list[str]) -> Check:
    assert results.chain is not None
    labels = assign_basins(results.chain.phi[:, results.pair], results.chain.psi[:, results.pair])
    middle = len(labels) // 2
    worst_name, worst = names[0], 0.0
    for name in names:
        inside = (labels == BASIN_NAMES.index(name)).astype(np.float64)
        z = abs(z_score(chain_mean(inside[:middle]), chain_mean(inside[middle:])))
        if math.isnan(z) or z > worst:
            worst_name, worst = name, math.inf if math.isnan(z) else z
    status: Status = _sigma_grade(worst)
    text = f"First and second half of the chain differ by at most {worst:.1f} standard errors ({worst_name})."
    if worst == math.inf:
        text = f"One half of the chain never entered or never left {worst_name}."
    return Check("both halves agree", status, text)


def _weight_checks(results: Results) -> list[Check]:
    weights = results.weights
    if weights is None:
        return []
    k = weights.pareto_k
    return [
        Check(
            "importance weights",
            _grade(weights.ess, _ESS_ENOUGH, _ESS_LEAST),
            f"{len(weights):,} samples of the generator are worth {weights.ess:,.0f} independent ones "
            f"({weights.ess_fraction:.1%}); none of the weights is clipped.",
        ),
        Check(
            "tail of the weights",
            "good" if k < PARETO_K_LIMIT else "warning" if k < 1.0 else "bad",
            f"Pareto k is {k:.2f}; up to {PARETO_K_LIMIT} their averages can be trusted.",
        ),
        Check(
            "largest weight",
            "good" if weights.largest_weight < _LARGEST_SHARE else "warning",
            f"The largest single weight carries {weights.largest_weight:.2%} of the total.",
        ),
    ]


def _agreement_checks(results: Results) -> list[Check]:
    first, second = results.method(BG_LANGEVIN), results.method(GENERATOR)
    if first is None or second is None:
        return []
    scores: dict[str, float] = {}
    for name in important_basins(results):
        z = abs(z_score(first.statistics.populations[name], second.statistics.populations[name]))
        scores[name] = math.inf if math.isnan(z) else z
    name = max(scores, key=lambda key: scores[key])
    a, b = first.statistics.populations[name], second.statistics.populations[name]
    text = f"Largest difference, {name}: {_percent(a)} (chain) against {_percent(b)} (reweighted generator)"
    if scores[name] == math.inf:
        text += ", one of them without an error because it never entered or never left the basin."
    else:
        text += f", {scores[name]:.1f} standard errors."
    return [Check("chain and reweighting agree", _sigma_grade(scores[name]), text)]


def _energy_checks(results: Results) -> list[Check]:
    """The mean energy feels every degree of freedom, not only the torsions."""
    if results.chain is None or results.weights is None:
        return []
    energies = results.weights.energies
    by_chain, by_weights = (
        chain_mean(results.chain.energy),
        results.weights.mean(np.where(np.isfinite(energies), energies, 0.0)),
    )
    z = abs(z_score(by_chain, by_weights))
    return [
        Check(
            "mean energies agree",
            "bad" if math.isnan(z) else _sigma_grade(z),
            f"{by_chain.value:.2f} ± {by_chain.error:.2f} kJ/mol (chain) against {by_weights.value:.2f} ± "
            f"{by_weights.error:.2f} kJ/mol (reweighted generator), {z:.1f} standard errors.",
        )
    ]


def _sigma_grade(sigma: float) -> Status:
    return "good" if sigma <= _SIGMA_WARNING else "warning" if sigma <= _SIGMA_BAD else "bad"


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.error):
        return f"{100 * estimate.value:.2f} %"
    return f"{100 * estimate.value:.2f} ± {100 * estimate.error:.2f} %"
