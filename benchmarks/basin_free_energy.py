"""Free energy of 0 < phi < 2.3 rad in vacuum alanine dipeptide by three methods; one command, resumable.

    python -m benchmarks.basin_free_energy                        about ten minutes on one quiet core
    python -m benchmarks.basin_free_energy --folder FOLDER        where samples are kept (build/basin_free_energy)
    python -m benchmarks.basin_free_energy --quick                hardly any samples, to see that it runs

ACE-ALA-NME, amber99sb.xml, vacuum, 300 K, bonds to hydrogen constrained. The methods share nothing but the force field:
a Boltzmann generator (its draws and a chain with Langevin dynamics, by MBAR), `openmm.app.Metadynamics` on phi and psi
(frames under the bias as built, held fixed, reweighted) and temperature replica exchange (all temperatures, by MBAR).
Frames with a cis peptide bond are left out everywhere. Results go to `benchmarks/results/basin_free_energy.json` and
`.md`; times are wall times of one process on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import basin_sampling as sampling
from benchmarks.basin_sampling import FULL, LADDER, QUICK, TEMPERATURE, Arrays, Ledger, Sizes
from benchmarks.table import Table, describe
from benchmarks.timing import machine
from openmm_bg.analysis import (
    Estimate,
    Populations,
    ReducedEnergies,
    Verdict,
    compare_populations,
    free_energy,
    populations,
    z_score,
)
from openmm_bg.analysis.basins import in_rare_basin
from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.files import write_bytes
from openmm_bg.systems import MolecularSystem

RESULTS = Path(__file__).parent / "results"
BASINS = ("phi > 0", "the rest")
EQUILIBRATION = 100  # frames of replica exchange
MBAR, DRAWS, CHAIN = "BG, MBAR of draws and chain", "BG, reweighted draws", "BG + Langevin, chain"
METADYNAMICS, RAW, EXCHANGE = "metadynamics, reweighted", "metadynamics, raw surface", "replica exchange, MBAR"
METHODS = (MBAR, METADYNAMICS, EXCHANGE)


def labels(torsions: Arrays) -> NDArray[np.int64]:
    """Basin of each frame: 0 for 0 < phi < 2.3 rad, 1 for the rest, -1 for a cis peptide bond."""
    return np.where(torsions["cis"] > 0.0, -1, np.where(in_rare_basin(torsions["phi"]), 0, 1))


def by_generator(molecule: MolecularSystem, draws: Arrays, chain: Arrays) -> dict[str, Any]:
    """Populations by MBAR of both, by the weighted draws alone and by the chain alone."""
    kt = thermal_energy(TEMPERATURE)
    chain_label, draw_label = (labels(sampling.torsions(molecule, arrays["positions"])) for arrays in (chain, draws))
    supported = np.isfinite(draws["log_prob"]) & np.isfinite(draws["energy"])
    u_draws = np.stack([-draws["log_prob"], draws["energy"] / kt])[:, supported]
    log_weights = u_draws[0] - u_draws[1]
    energies = ReducedEnergies(
        ("generator", "300 K"),
        np.concatenate([u_draws, np.stack([-chain["log_prob"], chain["reduced_potential"]])], axis=1),
        np.array([u_draws.shape[1], len(chain_label)]),
        temperatures=np.array([TEMPERATURE, TEMPERATURE]),
        known=np.array([0.0, np.nan]),
        independent=np.array([True, False]),
    )
    result = free_energy(energies)
    assert result.energies is not None
    used = np.concatenate([draw_label[supported], chain_label])[result.energies.kept]
    return {
        MBAR: ({name: result.mean(used == index, "300 K") for index, name in enumerate(BASINS)}, result.verdict),
        DRAWS: populations(
            draw_label[supported],
            BASINS,
            TEMPERATURE,
            weights=np.exp(log_weights - log_weights.max()),
            independent=True,
        ),
        CHAIN: populations(chain_label[KEPT_OUT:], BASINS, TEMPERATURE),
    }


KEPT_OUT = 160  # states of the chain before it is at equilibrium: ten scans


def by_metadynamics(runs: list[Arrays]) -> Populations:
    """Populations of several runs, each with weights of its own normalisation."""
    weights = [np.exp((run["bias"] - run["bias"].max()) / thermal_energy(TEMPERATURE)) for run in runs]
    return populations([labels(run) for run in runs], BASINS, TEMPERATURE, weights=[w / w.mean() for w in weights])


def by_raw_surface(runs: list[Arrays]) -> tuple[dict[str, Estimate], None]:
    """Mean of the runs' integrals of `getFreeEnergy()`, a biased estimate, with its standard error."""
    values = np.array([float(run["raw_population"]) for run in runs])
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    inside = Estimate(float(values.mean()), error)
    return {BASINS[0]: inside, BASINS[1]: Estimate(1.0 - inside.value, error)}, None


def by_replica_exchange(frames: Arrays) -> Populations:
    """Populations at 300 K from all temperatures; chains are the replicas, which carry the correlation in time."""
    frames = {name: values[EQUILIBRATION:] for name, values in frames.items()}
    order = np.argsort(frames["index"], axis=1, kind="stable")  # replica at each temperature
    energy = np.take_along_axis(frames["energy"], order, axis=1).T.ravel()
    result = free_energy(
        ReducedEnergies(
            [f"{temperature:.0f} K" for temperature in LADDER],
            np.stack([energy / thermal_energy(temperature) for temperature in LADDER]),
            np.full(len(LADDER), len(order)),
            temperatures=LADDER,
        ),
        decorrelate=False,
        n_bootstrap=0,
    )
    by_temperature = np.exp(result.log_weights("300 K")).reshape(len(LADDER), -1).T
    weights = np.empty_like(by_temperature)
    np.put_along_axis(weights, order, by_temperature, axis=1)
    label = labels(frames)
    return populations(list(label.T), BASINS, TEMPERATURE, weights=list(weights.T))


def difference(found: Populations | dict[str, Estimate]) -> Estimate:
    """Free energy of phi > 0 less that of the rest, kJ/mol."""
    if isinstance(found, Populations):
        return found.difference(*BASINS)
    inside, outside = (found[name] for name in BASINS)
    kt = thermal_energy(TEMPERATURE)
    return Estimate(-kt * np.log(inside.value / outside.value), kt * inside.error / (inside.value * outside.value))


def report(estimates: dict[str, Any], ledger: Ledger, sizes: Sizes, seed: int) -> tuple[dict[str, Any], str]:
    """Everything as JSON, and as a page with one table."""
    verdicts: dict[str, Verdict | None] = {}
    found: dict[str, Any] = {}
    for name, value in estimates.items():
        found[name], verdicts[name] = (value, value.verdict) if isinstance(value, Populations) else value
    values = {name: difference(value) for name, value in found.items()}
    scores = {f"{a} against {b}": z_score(values[a], values[b]) for a, b in combinations(METHODS, 2)}
    together = compare_populations({name: found[name] for name in METHODS})
    stages = {MBAR: "generator", METADYNAMICS: "metadynamics", EXCHANGE: "replica exchange"}
    rows = []
    for name, value in values.items():
        inside = (found[name].populations if isinstance(found[name], Populations) else found[name])[BASINS[0]]
        seconds, evaluations = ledger.total(stages[name]) if name in stages else (None, None)
        rows.append(
            {
                "method": name,
                "population / %": 100.0 * inside.value,
                "error / %": 100.0 * inside.error,
                "free energy / kJ/mol": value.value,
                "error / kJ/mol": value.error,
                "error / kT": value.error / thermal_energy(TEMPERATURE),
                "wall s": seconds,
                "energy evaluations": f"{evaluations:,}" if evaluations else None,
                "own verdict": verdict.answer if (verdict := verdicts[name]) else None,
            }
        )
    described = machine()
    agree = "; ".join(f"{pair}: {abs(z):.1f} standard errors" for pair, z in scores.items())
    notes = [
        f"Agreement: {agree}. Verdict over the three methods: {together.sentence}",
        "The wall time of the generator holds data at 700 K, training, draws and chain. All methods ran one after the "
        "other in one process on one thread, on a machine that other work shared; evaluations are those of energies or "
        "of forces, each step of dynamics one.",
    ]
    table = Table("Free energy of 0 < phi < 2.3 rad relative to the rest, 300 K", rows, notes)
    head = "Vacuum ACE-ALA-NME, amber99sb.xml, bonds to hydrogen constrained, 2 fs. Made by "
    page = f"# Free energy of a basin\n\n{head}`python -m benchmarks.basin_free_energy`.\n\n{describe(described)}\n\n"
    data = {
        "molecule": f"ACE-ALA-NME, {', '.join(sampling.FORCEFIELD)}, vacuum, no cutoff, HBonds",
        "temperature_K": TEMPERATURE,
        "sizes": asdict(sizes),
        "seed": seed,
        "rows": rows,
        "z_scores": scores,
        "verdict": together.answer,
        "verdict_sentence": together.sentence,
        "checks": [vars(check) for check in together.checks]
        + [{**vars(check), "name": f"{MBAR}: {check.name}"} for check in estimates[MBAR][1].checks],
        "costs": ledger.costs,
        "machine": described,
    }
    return data, page + table.markdown().replace(table.title, f"{table.title}\n\n<!-- table -->", 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.basin_free_energy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("build/basin_free_energy"), help="samples, checkpoints")
    parser.add_argument("--quick", action="store_true", help="hardly any samples; results are printed, not kept")
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    sizes, seed = QUICK if options.quick else FULL, options.seed
    try:
        molecule, ledger = sampling.prepare(options.folder, sizes, seed)
        common = (molecule, options.folder, sizes, seed, ledger)
        sampling.train_generator(*common)
        estimates = by_generator(molecule, sampling.sample_generator(*common), sampling.run_chain(*common))
        runs = sampling.run_metadynamics(*common)
        estimates |= {METADYNAMICS: by_metadynamics(runs), RAW: by_raw_surface(runs)}
        estimates[EXCHANGE] = by_replica_exchange(sampling.run_replica_exchange(*common))
    except KeyboardInterrupt:
        sys.exit("Stopped; run again with the same folder to continue.")
    data, page = report(estimates, ledger, sizes, seed)
    print(page)
    if not options.quick:
        write_bytes(RESULTS / "basin_free_energy.json", (json.dumps(data, indent=1) + "\n").encode())
        write_bytes(RESULTS / "basin_free_energy.md", page.encode())


if __name__ == "__main__":
    main()
