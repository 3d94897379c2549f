"""Whether to believe populations of basins: of one method, and of several side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from scipy.signal import detrend

from openmm_bg.analysis.checks import Check, Verdict, conclude, grade, percent, sigma_grade
from openmm_bg.analysis.estimate import Estimate, z_score
from openmm_bg.analysis.population_result import Populations, combined_error
from openmm_bg.analysis.weights import PARETO_K_LIMIT, pareto_k

_ENTRIES_ENOUGH, _ENTRIES_LEAST = 20, 3
_INDEPENDENT_ENOUGH, _INDEPENDENT_LEAST = 50.0, 10.0
_ESS_ENOUGH, _ESS_LEAST = 100.0, 20.0


def checks(found: Populations) -> list[Check]:
    """Return the checks that the populations of one method allow."""
    lost = [name for name in found.names if found.populations[name].value == 0.0]
    checks = [
        Check(
            "no basin lost",
            "bad" if lost else "good",
            f"Never sampled: {', '.join(lost)}. The free energy there is unknown, not infinite."
            if lost
            else f"Every basin was sampled: {_shown(found)}.",
        )
    ]
    sampled = [name for name in found.names if name not in lost]
    if not sampled or (len(sampled) == 1 and found.populations[sampled[0]].value == 1.0):
        return checks
    if not found.independent:
        checks += [_entries(found, sampled), _independent(found, sampled)]
    checks.append(_halves(found, sampled))
    if len(found.labels) > 1:
        checks.append(_chains(found, sampled))
    if found.weights is not None:
        checks += _weights(found, sampled)
    return checks


def compare_populations(estimates: Mapping[str, Populations | Mapping[str, Estimate]]) -> Verdict:
    """Judge populations of the same basins by several methods.

    Parameters
    ----------
    estimates : mapping of str to Populations, or to a mapping of basin to Estimate
        By name of the method: what `populations` returned, or populations with errors from elsewhere.

    Returns
    -------
    Verdict
        It refuses if a basin that one method sampled is missing from another, if two methods differ by more than four
        combined standard errors (raised for several basins and methods, Bonferroni), or if a method's own verdict
        refuses.

    Raises
    ------
    ValueError
        If there are fewer than two methods or their basins have different names.
    """
    found = {key: value.populations if isinstance(value, Populations) else value for key, value in estimates.items()}
    if len(found) < 2:
        raise ValueError(f"a comparison needs two methods or more, found {list(found)}")
    names = list(next(iter(found.values())))
    for method, populations in found.items():
        if set(populations) != set(names):
            raise ValueError(f"the basins of {method!r} are {list(populations)}, those of the others {names}")
    own = [
        Check(f"{method}: {check.name}", check.status, check.text)
        for method, value in estimates.items()
        if isinstance(value, Populations)
        for check in value.verdict.checks
    ]
    return conclude([_seen_by_all(found, names), _agreement(found, names), *own])


def _seen_by_all(found: Mapping[str, Mapping[str, Estimate]], names: list[str]) -> Check:
    missing = [
        f"{name} has {percent(max((p[name] for p in found.values()), key=lambda e: e.value))} by one method and was "
        f"never sampled by {', '.join(method for method, p in found.items() if p[name].value == 0.0)}"
        for name in names
        if any(p[name].value == 0.0 for p in found.values()) and any(p[name].value > 0.0 for p in found.values())
    ]
    text = "; ".join(missing) + "." if missing else "What one method sampled, every other sampled too."
    return Check("basins of all methods", "bad" if missing else "good", text)


def _agreement(found: Mapping[str, Mapping[str, Estimate]], names: list[str]) -> Check:
    pairs = [(name, a, b) for name in names for a, b in combinations(found, 2)]
    scores = [_distance(z_score(found[a][name], found[b][name])) for name, a, b in pairs]
    worst = int(np.argmax(scores))
    name, a, b = pairs[worst]
    text = f"Largest difference, {name}: {percent(found[a][name])} ({a}) against {percent(found[b][name])} ({b})"
    text += (
        ", one of them without an error." if math.isinf(scores[worst]) else f", {scores[worst]:.1f} standard errors."
    )
    return Check("methods agree", sigma_grade(scores[worst], len(pairs)), text)


def _shown(found: Populations) -> str:
    return ", ".join(f"{name} {percent(found.populations[name])}" for name in found.names)


def _entries(found: Populations, sampled: list[str]) -> Check:
    counts = {}
    for name in sampled:
        index = found.names.index(name)
        inside = [labels == index for labels in found.labels]
        counts[name] = sum(int(np.count_nonzero(chain[1:] & ~chain[:-1])) for chain in inside)
    fewest = min(counts, key=counts.__getitem__)
    status = grade(counts[fewest], _ENTRIES_ENOUGH, _ENTRIES_LEAST)
    return Check("entries", status, f"Of all basins {fewest} was entered least, {counts[fewest]:,} times.")


def _independent(found: Populations, sampled: list[str]) -> Check:
    sizes = {name: found.populations[name].n_effective for name in sampled}
    worst = min(sizes, key=lambda name: sizes[name] if math.isfinite(sizes[name]) else 0.0)
    if not math.isfinite(sizes[worst]):
        return Check("independent samples", "bad", f"No chain ever entered and left {worst}; it has no error.")
    status = grade(sizes[worst], _INDEPENDENT_ENOUGH, _INDEPENDENT_LEAST)
    return Check(
        "independent samples", status, f"For {worst} the chains are worth {sizes[worst]:,.0f} independent ones."
    )


def _halves(found: Populations, sampled: list[str]) -> Check:
    first, second = found.part(0.0, 0.5).populations, found.part(0.5, 1.0).populations
    scores = {name: _drift(found, name) for name in sampled}
    for name in sampled:
        if math.isnan(first[name].error) or math.isnan(second[name].error):
            scores[name] = math.inf
    worst = max(scores, key=scores.__getitem__)
    text = (
        f"One half of the samples never entered or never left {worst}."
        if math.isinf(scores[worst])
        else f"First and second half differ by at most {scores[worst]:.1f} standard errors ({worst}: "
        f"{percent(first[worst])}, then {percent(second[worst])})."
    )
    return Check("both halves agree", sigma_grade(scores[worst], len(sampled)), text)


def _drift(found: Populations, name: str) -> float:
    """Difference of the halves in standard errors.

    A drift is a correlation that never decays, and would hide in an error estimated with it: the errors are those of
    the chains without their linear trend.
    """
    differences, within = [], []
    for z in found.influence[name]:
        share, half = len(z) / found.n_samples, len(z) // 2
        differences.append(share * float(z[half:].mean() - z[:half].mean()))
        if np.ptp(z) > 0.0 and len(z) > 2:
            within.append(2.0 * share * found.chain_error(detrend(z)))
    mean = sum(differences) / len(differences)
    error = combined_error(within, [difference - mean for difference in differences])
    return math.inf if math.isnan(error) else abs(sum(differences)) / error


def _chains(found: Populations, sampled: list[str]) -> Check:
    """Chains that moved, each against all others; those that did not move have no error of their own."""
    worst, text, n = 0.0, "No two chains have entered and left the same basin.", 0
    for index in range(len(found.labels)):
        own, others = found.chain(index).populations, found.without_chain(index).populations
        for name in sampled:
            z = z_score(own[name], others[name])
            if math.isnan(z):
                continue
            n += 1
            if abs(z) >= worst:
                worst = abs(z)
                text = f"Largest difference of a chain from the others: {worst:.1f} standard errors ({name})."
    return Check("chains agree", sigma_grade(worst, n) if n else "warning", text)


def _weights(found: Populations, sampled: list[str]) -> list[Check]:
    assert found.weights is not None
    w, labels = np.concatenate(found.weights), np.concatenate(found.labels)
    sizes = {name: _kish(w[labels == found.names.index(name)]) for name in sampled}
    fewest = min(sizes, key=sizes.__getitem__)
    with np.errstate(divide="ignore"):
        k = pareto_k(np.log(w))
    return [
        Check(
            "importance weights",
            grade(_kish(w), _ESS_ENOUGH, _ESS_LEAST),
            f"{len(w):,} weighted samples are worth {_kish(w):,.0f} equal ones; none of the weights is clipped.",
        ),
        Check(
            "weights in every basin",
            grade(sizes[fewest], _ENTRIES_ENOUGH, _ENTRIES_LEAST),
            f"Fewest in {fewest}: its weighted samples are worth {sizes[fewest]:,.0f} equal ones.",
        ),
        Check(
            "tail of the weights",
            "good" if k <= PARETO_K_LIMIT else "bad",
            f"Pareto k is {k:.2f}; averages can be trusted up to {PARETO_K_LIMIT}.",
        ),
    ]


def _kish(weights: np.ndarray) -> float:
    total = float(np.sum(weights**2))
    return float(weights.sum()) ** 2 / total if total > 0.0 else 0.0


def _distance(z: float) -> float:
    """Size of a difference; infinite where there is no error to compare it with."""
    return math.inf if math.isnan(z) else abs(z)
