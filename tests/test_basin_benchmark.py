"""The estimators of the benchmark of a basin's free energy, on samples whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.basin_free_energy import BASINS, by_metadynamics, by_raw_surface, by_replica_exchange, difference
from benchmarks.basin_sampling import LADDER, QUICK, TEMPERATURE, Ledger, prepare, read_npz, write_npz
from openmm_bg.analysis.thermal import thermal_energy

KT = thermal_energy(TEMPERATURE)
GAP = 5.0  # kJ/mol, of the basin over the rest


def torsions(inside: np.ndarray) -> dict[str, np.ndarray]:
    return {"phi": np.where(inside, 1.0, -1.0), "cis": np.zeros(inside.shape)}


def metadynamics_runs(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Runs whose bias makes both basins equally likely, up to a constant that differs from run to run."""
    runs = []
    for constant in (0.0, 12.0, 3.0):
        inside = rng.random(4000) < 0.5
        runs.append({**torsions(inside), "bias": constant + np.where(inside, -GAP, 0.0)})
    return runs


def ladder_frames(rng: np.random.Generator, n: int = 3000) -> dict[str, np.ndarray]:
    """Two basins GAP apart, each with six harmonic degrees of freedom, at temperatures that replicas swap."""
    index = np.array([rng.permutation(len(LADDER)) for _ in range(n)])
    kt = np.array([thermal_energy(temperature) for temperature in LADDER])[index]
    inside = rng.random(index.shape) < 1.0 / (1.0 + np.exp(GAP / kt))
    return {**torsions(inside), "index": index, "energy": GAP * inside + kt * rng.gamma(3.0, size=index.shape)}


def test_frames_under_a_bias_are_weighted_back_each_run_by_itself() -> None:
    found = difference(by_metadynamics(metadynamics_runs(np.random.default_rng(1))))
    assert abs(found.value - GAP) < 3.5 * found.error
    assert found.error == pytest.approx(KT * 2.0 / np.sqrt(12_000), rel=0.2)


def test_weights_of_the_wrong_sign_are_found_out() -> None:
    runs = [{**run, "bias": -run["bias"]} for run in metadynamics_runs(np.random.default_rng(1))]
    found = difference(by_metadynamics(runs))
    assert abs(found.value - GAP) > 8.0 * found.error


def test_replica_exchange_uses_all_temperatures_wherever_the_replicas_are() -> None:
    frames = ladder_frames(np.random.default_rng(2))
    found = difference(by_replica_exchange(frames))
    assert abs(found.value - GAP) < 3.5 * found.error
    wrong = difference(by_replica_exchange({**frames, "energy": frames["energy"][:, ::-1]}))  # of another replica
    assert abs(wrong.value - GAP) > 8.0 * wrong.error


def test_frames_with_a_cis_bond_are_in_no_basin() -> None:
    runs = metadynamics_runs(np.random.default_rng(3))
    for run in runs:
        run["cis"][::10] = 1.0
    found = by_metadynamics(runs)
    assert sum(found.populations[name].value for name in BASINS) == pytest.approx(0.9, abs=0.02)
    assert abs(difference(found).value - GAP) < 3.5 * difference(found).error


def test_raw_surfaces_have_the_error_of_their_mean() -> None:
    found, _ = by_raw_surface([{"raw_population": np.array(p)} for p in (0.01, 0.02, 0.03)])
    assert found[BASINS[0]].value == pytest.approx(0.02)
    assert found[BASINS[0]].error == pytest.approx(0.01 / np.sqrt(3.0))


def test_costs_add_up_over_interruptions_and_other_sizes_are_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).charge("generator: data", seconds=1.0, evaluations=10)
    ledger = Ledger(tmp_path)
    with pytest.raises(KeyboardInterrupt), ledger.timed("generator: data"):
        raise KeyboardInterrupt
    ledger.charge("generator: draws", evaluations=5)
    seconds, evaluations = Ledger(tmp_path).total("generator")
    assert seconds > 1.0
    assert evaluations == 15
    prepare(tmp_path / "run", QUICK, 1)
    prepare(tmp_path / "run", QUICK, 1)
    with pytest.raises(ValueError, match="another folder"):
        prepare(tmp_path / "run", QUICK, 2)


def test_arrays_are_kept_whole(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", {"x": np.arange(3.0)})
    assert read_npz(tmp_path / "a.npz")["x"].tolist() == [0.0, 1.0, 2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
