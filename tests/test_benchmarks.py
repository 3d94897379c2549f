"""The benchmarks' own judgement and bookkeeping; what they measure is no matter of tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.populations import REFERENCE, compare
from benchmarks.table import Table, write
from benchmarks.timing import interleave, machine, ratio


@pytest.fixture
def reference() -> dict:
    return json.loads(REFERENCE.read_text())


def summary(reference: dict, shift: float) -> dict:
    """A run in which one method is `shift` combined standard errors off."""
    expected = reference["populations_mbar"]["phi_positive"]
    off = expected["value"] + shift * np.hypot(expected["error"], 0.001)
    return {
        "phi_positive_population": {
            "bg_langevin": {"value": off, "error": 0.001},
            "langevin": {"value": 0.0, "error": None},
        }
    }


@pytest.mark.parametrize(
    ("shift", "word"), [(0.0, "every method agrees"), (1.9, "agrees"), (-2.1, "bg_langevin differ")]
)
def test_populations_are_judged_in_combined_standard_errors(reference: dict, shift: float, word: str) -> None:
    table = compare(summary(reference, shift), reference)
    scores = {row["method"]: row["z"] for row in table.rows}
    assert scores["bg_langevin"] == pytest.approx(shift)
    assert scores["langevin"] is None
    assert word in table.notes[0]


def test_a_run_without_errors_is_not_judged(reference: dict) -> None:
    assert "no method" in compare({}, reference).notes[0]


def test_tables_of_earlier_runs_are_kept_and_those_made_anew_replaced(tmp_path: Path) -> None:
    first = {"a": Table("A", [{"x": 1.5, "y": None}], ["note"]), "b": Table("B", [{"x": 12345.6}])}
    write(tmp_path, machine(), first)
    write(tmp_path, machine(), {"b": Table("B", [{"x": 2}])})
    kept = json.loads((tmp_path / "benchmarks.json").read_text())["tables"]
    assert kept["a"]["rows"] == [{"x": 1.5, "y": None}]
    assert kept["b"]["rows"] == [{"x": 2}]
    assert kept["a"]["machine"]["cores"] >= 1
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| 1.5 | - |" in page
    assert page.count("## ") == 2


def test_functions_take_turns_and_ratios_are_those_of_one_round() -> None:
    calls: list[str] = []
    times = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert calls == ["a", "b"] * 4  # the first round does not count
    assert {name: value.shape for name, value in times.items()} == {"a": (3,), "b": (3,)}
    rounds = {"a": np.array([1.0, 10.0, 1.0]), "b": np.array([0.5, 5.0, 0.1])}
    assert ratio(rounds, "a", "b") == pytest.approx(2.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["benchmarks.protein_walk", "--quick"], ["latent walk and Langevin", "Independence proposals: "]),
        (["benchmarks", "--quick", "--only", "protein-cost"], ["Cost of reduced coordinates", "one is linear"]),
    ],
)
def test_benchmarks_of_proteins_run(command: list[str], expected: list[str], tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command, "--output", str(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for words in expected:
        assert words in run.stdout
