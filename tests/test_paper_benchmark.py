"""The comparison of the paper's rows: its words, its averages, and that a finished cell is not made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.paper.__main__ import case_of, cells_of, collect, parser
from benchmarks.paper.cell import independence_acceptance, overlap
from benchmarks.paper.figure import draw
from benchmarks.paper.molecules import CASES, build
from benchmarks.paper.report import NO_OVERLAP, line, over_seeds, overlap_text, verdict, write
from benchmarks.paper.rows import BASELINE, FULL, ROWS, make_generator, match, matched_configs, n_parameters
from openmm_bg.flows import SplitConfig

ROOT = Path(__file__).parent.parent


def cell(distortion: float = 1.0, median: float = 50.0, **changes: Any) -> dict[str, Any]:
    """A cell as it is kept."""
    found = {
        "budget": 45.0,
        "is_consistent": True,
        "distortion": [distortion, 0.1],
        "distortion_floor": 0.05,
        "energy": [median - 20.0, median, median + 900.0],
        "energy_of_dynamics": [-10.0, 0.0, 12.0],
        "nll": [-100.0, 0.5],
        "ess": 500.0,
        "pareto_k": 0.4,
        "largest_weight": 0.01,
        "n_samples": 2000,
        "independence": 0.3,
        "walk": {"acceptance": {"global": 0.25}, "step": {"global": 0.1}},
        "parameters": 12345,
        "seconds": 45.1,
        "evaluations": 0,
    }
    return found | changes


def test_weights_that_one_draw_dominates_are_no_overlap_and_no_number() -> None:
    log_weights = np.zeros(1000)
    log_weights[17] = 40.0
    found = overlap(log_weights)
    assert found["ess"] == pytest.approx(1.0)
    text = line([cell(**found)])["ESS of N"]
    assert text == NO_OVERLAP
    assert not any(character.isdigit() for character in text)


def test_no_draw_with_a_weight_is_no_overlap() -> None:
    assert overlap_text([cell(**overlap(np.full(100, -np.inf)))]) == NO_OVERLAP


def test_weights_of_a_flow_that_disagrees_with_itself_are_no_number() -> None:
    assert not any(character.isdigit() for character in overlap_text([cell(), cell(is_consistent=False)]))


def test_even_weights_have_the_size_that_theory_says() -> None:
    rng = np.random.default_rng(1)
    spread = 0.5
    found = overlap(spread * rng.standard_normal(200_000))
    assert found["ess"] / 200_000 == pytest.approx(np.exp(-(spread**2)), rel=0.02)  # of log-normal weights
    assert "%" in overlap_text([cell(**found, n_samples=200_000)])


def test_seeds_without_overlap_are_counted_and_not_averaged() -> None:
    assert overlap_text([cell(), cell(largest_weight=0.9)]) == f"{NO_OVERLAP} (1 of 2 seeds)"


def test_independence_acceptance_is_that_of_a_chain() -> None:
    rng = np.random.default_rng(2)
    log_weights = np.log(np.array([1.0, 3.0]))
    proposed = log_weights[rng.integers(0, 2, 20_000)]  # states 0 and 1 are proposed alike; the target has them 1 : 3
    current = log_weights[(rng.random(500) < 0.75).astype(int)]
    expected = 0.25 * 1.0 + 0.75 * (0.5 * 1.0 + 0.5 / 3.0)
    assert independence_acceptance(proposed, current) == pytest.approx(expected, abs=0.02)
    assert independence_acceptance(np.full(5, -np.inf), current) == 0.0
    assert independence_acceptance(proposed, np.full(5, -np.inf)) == 0.0


def test_the_verdict_says_what_was_not_met() -> None:
    rows = {BASELINE: [cell(1.0, 100.0)], FULL: [cell(0.4, 150.0)]}
    text = verdict(rows)[0]
    assert "ratio of 2.50 (goal: 2 or more; met)" in text
    assert "+50 kJ/mol (goal: lower; not met)" in text
    assert "no comparison" in verdict({BASELINE: [cell()]})[0]
    assert "no comparison" in verdict({BASELINE: [cell()], FULL: [{"failed": "ValueError: why"}]})[0]


def test_averages_have_the_spread_over_seeds() -> None:
    assert over_seeds([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert over_seeds([1234.5]) == "1,234"
    assert over_seeds([-3.21], [0.12]) == "-3.21 ± 0.12"
    assert over_seeds([1.0, float("inf")]) == "inf for 1 of 2"


def test_a_failed_cell_is_said_to_have_failed(tmp_path: Path) -> None:
    data = {"n_atoms": 22, "n_frames": 10, "n_steps": 100, "seconds": 1.0, "platform": "Reference"}
    machine = {"processor": "p", "cores": 1, "load": 0, "cuda": None, "system": "s", "threads_of_torch": 1}
    cells = {
        "dipeptide": {BASELINE: [cell(), {"failed": "why", "budget": 45.0}], FULL: [{"failed": "x", "budget": 1.0}]}
    }
    page = write(tmp_path, cells, {"dipeptide": data}, machine | {"versions": {}})
    assert "1 of 2" in page
    assert "failed" in page
    assert json.loads((tmp_path / "paper.json").read_text())["cells"] == cells
    assert_drawn(tmp_path / "paper.svg")


def assert_drawn(path: Path) -> None:
    assert xml.etree.ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_figure_draws_every_row_and_leaves_out_what_failed() -> None:
    cells = {
        "dipeptide": {BASELINE: [cell(), cell(0.5)], FULL: [cell(energy=[1.0, 2.0, float("inf")])]},
        "hp35": {FULL: [{"failed": "why", "budget": 1.0}]},
    }
    drawn = draw(cells)
    assert [name in drawn for name in ("Alanine dipeptide", "Villin", ROWS[BASELINE].title, ROWS[FULL].title)] == [
        True, False, True, True,
    ]  # fmt: skip


def test_the_figure_of_the_page_is_that_of_the_tables() -> None:
    cells = json.loads((ROOT / "benchmarks" / "results" / "paper.json").read_text())["cells"]
    written = (ROOT / "benchmarks" / "results" / "paper.svg").read_text()
    assert (ROOT / "docs" / "images" / "paper.svg").read_text() == written
    assert draw(cells) == written


def test_widths_are_those_of_the_nearest_count() -> None:
    assert match(lambda width: width**2, 10_050) == 100
    assert match(lambda width: width**2, 1) == 4


def test_rows_of_a_molecule_have_equal_numbers_of_parameters(tmp_path: Path) -> None:
    molecule, case = build("dipeptide", None), CASES["dipeptide"]
    configs = matched_configs(molecule, case, tmp_path / "widths.json")
    assert configs[FULL] == SplitConfig()
    counts = [n_parameters(make_generator(molecule, case, config, 0)) for config in configs.values()]
    assert max(counts) / min(counts) < 1.05
    assert matched_configs(molecule, case, tmp_path / "widths.json") == configs


def test_rows_have_the_losses_of_their_names() -> None:
    case = CASES["hp35"]
    for row in ROWS.values():
        stages = row.stages(case)
        assert any(stage.w2 for stage in stages) == row.w2
        assert any(stage.reverse_kl for stage in stages) == row.reverse_kl
        assert all(stage.nll for stage in stages)
        assert all(stage.batch_size == case.batch_size for stage in stages)


def test_baseline_and_full_recipe_come_first() -> None:
    order = [row for _, row, seed in cells_of("hp35", parser().parse_args([])) if seed == 0]
    assert set(order[:2]) == {BASELINE, FULL}
    assert set(order) == set(ROWS)
    assert case_of("hp35", parser().parse_args(["--seconds", "10"])).seconds == 10.0


@pytest.mark.slow
def test_the_command_makes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.paper", "--quick", "--output", str(tmp_path)]

    def run() -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600, check=True
        )
        return done.stdout

    page = run()
    assert ROWS[BASELINE].title in page
    assert "goal" in page
    cells = collect(tmp_path)["dipeptide"]
    assert set(cells) == {BASELINE, FULL}
    assert "failed" not in cells[FULL][0]
    assert cells[FULL][0]["evaluations"] > 0 == cells[BASELINE][0]["evaluations"]
    paths = sorted((tmp_path / "dipeptide" / "cells").iterdir())
    times = [path.stat().st_mtime_ns for path in paths]
    paths[0].unlink()
    run()
    assert sorted((tmp_path / "dipeptide" / "cells").iterdir()) == paths
    assert [path.stat().st_mtime_ns for path in paths[1:]] == times[1:]
    assert paths[0].stat().st_mtime_ns > times[0]
