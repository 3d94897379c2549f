"""Checks of a latent walk in a protein: of side chains and energies, against dynamics that never saw the generator."""

from __future__ import annotations

import math

import numpy as np

from openmm_bg.analysis.checks import Check, grade, percent, sigma_grade
from openmm_bg.analysis.estimate import Estimate, z_score
from openmm_bg.analysis.rotamers import assign_rotamers
from openmm_bg.analysis.timeseries import chain_mean
from openmm_bg.report.records import Chain
from openmm_bg.report.results import FEWEST_STATES, Results
from openmm_bg.report.side_chains import SideChainSpeed

_RESOLVED_ENOUGH = 0.9
_ACCEPTED_ENOUGH, _ACCEPTED_LEAST = 0.05, 0.005
_OFF_SUPPORT_FEW, _OFF_SUPPORT_MOST = 0.01, 0.1
_ROTAMERS = ("gauche+", "trans", "gauche-")


def walk_checks(results: Results) -> list[Check]:
    """Return the checks that a run with a latent walk allows.

    Such a walk turns side chains; the backbone is left to small steps and to dynamics, which explore the fold that the
    run began with. So the backbone's populations are no test of the walk, and are not to be believed beyond that fold.
    """
    chain, alone, speed = results.chain, results.langevin, results.side_chains
    if chain is None:
        return []
    if len(chain) < FEWEST_STATES:
        return [Check("length of the chain", "bad", f"A chain of {len(chain)} states is too short to judge.")]
    checks = [_accepted(results), _on_support(chain)]
    if speed is not None:
        checks.append(_resolved(speed))
    if alone is not None and len(alone) >= FEWEST_STATES:
        if speed is not None:
            checks.append(_rotamers_agree(chain, alone, speed))
        checks.append(_energies_agree(chain, alone))
    text = "Side chains were sampled in the fold that the run began with; other folds take replica exchange or longer."
    checks.append(Check("backbone", "warning", text))
    return checks


def _accepted(results: Results) -> Check:
    counts = results.acceptance_by_kind
    parts = [f"{kind} {taken / tried:.1%} of {tried:,}" for kind, (taken, tried) in counts.items() if tried]
    taken, tried = (sum(column) for column in zip(*counts.values(), strict=True))
    status = grade(taken / max(1, tried), _ACCEPTED_ENOUGH, _ACCEPTED_LEAST)
    return Check("acceptance", status, f"Accepted: {', '.join(parts)}.")


def _on_support(chain: Chain) -> Check:
    fraction = int(chain.off_support.sum()) / max(1, int(chain.proposed.sum()))
    return Check(
        "chain on the support",
        "good" if fraction < _OFF_SUPPORT_FEW else "warning" if fraction < _OFF_SUPPORT_MOST else "bad",
        f"At {fraction:.1%} of the proposals the chain was in a state that the generator cannot propose.",
    )


def _resolved(speed: SideChainSpeed) -> Check:
    n_moves, n_alone = speed.n_resolved
    return Check(
        "side chains resolved",
        grade(n_moves, _RESOLVED_ENOUGH * len(speed.names), 1),
        f"Of {len(speed.names)} side chains {n_moves} changed their rotamer often enough for populations with errors "
        f"(Langevin alone: {n_alone}); of the others believe none.",
    )


def _rotamers_agree(chain: Chain, alone: Chain, speed: SideChainSpeed) -> Check:
    """The largest difference of a rotamer's population, among side chains that both chains resolve."""
    name = "rotamers agree with dynamics"
    found: list[tuple[float, str, Estimate, Estimate]] = []
    for index, residue in enumerate(speed.names):
        if speed.moves[index].status != "resolved" or speed.alone[index].status != "resolved":
            continue
        labels = [assign_rotamers(c.chi[:, index]) for c in (chain, alone)]
        for rotamer, label in enumerate(_ROTAMERS):
            first, second = (chain_mean((found == rotamer).astype(np.float64)) for found in labels)
            z = abs(z_score(first, second))
            if not math.isnan(z):
                found.append((z, f"{residue} {label}", first, second))
    if not found:
        return Check(name, "warning", "There is no side chain whose populations both chains know.")
    z, place, first, second = max(found, key=lambda entry: entry[0])
    text = f"Largest difference of {len(found)}, {place}: {percent(first)} (with moves) against {percent(second)}"
    return Check(name, sigma_grade(z, len(found)), f"{text} (Langevin alone), {z:.1f} standard errors.")


def _energies_agree(chain: Chain, alone: Chain) -> Check:
    """The mean energy feels every degree of freedom, not only the torsions."""
    first, second = chain_mean(chain.energy), chain_mean(alone.energy)
    z = abs(z_score(first, second))
    return Check(
        "mean energies agree",
        "bad" if math.isnan(z) else sigma_grade(z),
        f"{first.value:.1f} ± {first.error:.1f} kJ/mol (with moves) against {second.value:.1f} ± {second.error:.1f} "
        f"kJ/mol (Langevin alone), {z:.1f} standard errors.",
    )
