"""Whether to believe the numbers of a run: the checks, and a plain sentence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from openmm_bg.analysis.acceptance import longest_run
from openmm_bg.analysis.checks import Check, Status, Verdict, conclude, grade, sigma_grade
from openmm_bg.analysis.estimate import z_score
from openmm_bg.analysis.timeseries import chain_mean
from openmm_bg.analysis.weights import PARETO_K_LIMIT
from openmm_bg.report.basin_checks import basin_checks
from openmm_bg.report.records import Chain
from openmm_bg.report.results import BG_LANGEVIN, FEWEST_STATES, Results
from openmm_bg.report.walk_checks import walk_checks

_ACCEPTED_ENOUGH, _ACCEPTED_LEAST = 0.10, 0.01
_ESS_ENOUGH, _ESS_LEAST = 100.0, 20.0
_TRIPS_ENOUGH, _TRIPS_LEAST = 20, 3
_LARGEST_SHARE = 0.05
_WAIT_SHORT, _WAIT_LONG = 0.02, 0.2
_STATUS_OF_ANSWER: dict[str, Status] = {"believe": "good", "believe with care": "warning"}
_OFF_SUPPORT_FEW, _OFF_SUPPORT_MOST = 0.01, 0.1


def judge(results: Results, free_energy: dict[str, Any] | None = None) -> Verdict:
    """Check a run and say whether its populations and free energies can be believed.

    Parameters
    ----------
    results : Results
    free_energy : dict, optional
        What free_energy.json holds.
    """
    if results.walks:
        checks = walk_checks(results)
    else:
        checks = [*_chain_checks(results), *basin_checks(results), *_weight_checks(results), *_energy_checks(results)]
    if free_energy is not None:
        status = _STATUS_OF_ANSWER.get(free_energy["verdict"], "bad")
        checks.append(Check("free energies by MBAR", status, free_energy["verdict_sentence"]))
    verdict = conclude(checks)
    if checks and not results.walks and not verdict.refused and (results.chain is None or results.weights is None):
        sentence = "Believe these numbers with care: of chain and reweighting only one is there."
        return Verdict("believe with care", sentence, checks)
    return verdict


def _chain_checks(results: Results) -> list[Check]:
    chain, acceptance = results.chain, results.acceptance
    if chain is None:
        return []
    if len(chain) < FEWEST_STATES:
        return [Check("length of the chain", "bad", f"A chain of {len(chain)} states is too short to judge.")]
    checks = []
    if acceptance is not None:
        fraction = acceptance.overall.value
        checks += [
            Check(
                "acceptance",
                grade(fraction, _ACCEPTED_ENOUGH, _ACCEPTED_LEAST),
                f"{fraction:.1%} of {acceptance.n_proposed:,} proposals were accepted.",
            ),
            _wait_check(chain),
        ]
    method = results.method(BG_LANGEVIN)
    if method is not None and method.trips is not None:
        checks.append(
            Check(
                "round trips",
                grade(method.trips.count, _TRIPS_ENOUGH, _TRIPS_LEAST),
                f"{results.pair_name} went {method.trips.count:,} times from phi < 0 to 0 < phi < 2.3 rad and back.",
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
    return checks


def _wait_check(chain: Chain) -> Check:
    """A chain in a state that the generator hardly knows refuses everything until dynamics leads it out."""
    accepted = chain.accepted[chain.proposed]
    longest = longest_run(~accepted)
    share = longest / len(accepted)
    return Check(
        "longest wait",
        "good" if share < _WAIT_SHORT else "warning" if share < _WAIT_LONG else "bad",
        f"At most {longest:,} proposals in a row were rejected ({share:.2%} of the chain).",
    )


def _weight_checks(results: Results) -> list[Check]:
    weights = results.weights
    if weights is None:
        return []
    k = weights.pareto_k
    return [
        Check(
            "importance weights",
            grade(weights.ess, _ESS_ENOUGH, _ESS_LEAST),
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


def _energy_checks(results: Results) -> list[Check]:
    """The mean energy feels every degree of freedom, not only the torsions."""
    if results.chain is None or results.weights is None or len(results.chain) < FEWEST_STATES:
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
            "bad" if math.isnan(z) else sigma_grade(z),
            f"{by_chain.value:.2f} ± {by_chain.error:.2f} kJ/mol (chain) against {by_weights.value:.2f} ± "
            f"{by_weights.error:.2f} kJ/mol (reweighted generator), {z:.1f} standard errors.",
        )
    ]
