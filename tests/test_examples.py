"""The examples run, one after the other, as their first lines say."""

from __future__ import annotations

import difflib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(folder: Path, name: str, *arguments: str) -> str:
    command = [sys.executable, EXAMPLES / name, "--quick", *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{name} failed:\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def test_training_makes_a_generator_that_loads(tmp_path: Path) -> None:
    from openmm_bg import BoltzmannGenerator

    printed = run(tmp_path, "train_your_own.py", "--sequence", "ACE-GLY-NME", "--output", "gly2.bg")
    assert "ESS/N" in printed
    assert BoltzmannGenerator.load(tmp_path / "gly2.bg").n_atoms == 19


@pytest.mark.parametrize("arguments", [(), ("--without-generator",)])
def test_existing_script_runs_with_and_without_the_move(
    arguments: tuple[str, ...], ala2_generator_file: Path, tmp_path: Path
) -> None:
    printed = run(tmp_path, "openmmtools_script.py", "--generator", str(ala2_generator_file), *arguments)
    assert "P(0 < phi < 2.3 rad)" in printed
    assert ("proposals were accepted" in printed) == (arguments == ())


def test_replica_exchange_goes_on_where_it_stopped(ala2_generator_file: Path, tmp_path: Path) -> None:
    first = run(tmp_path, "replica_exchange.py", "--generator", str(ala2_generator_file))
    assert "going on" not in first
    second = run(tmp_path, "replica_exchange.py", "--generator", str(ala2_generator_file))
    assert "going on from iteration 2" in second


def test_free_energies_come_with_a_verdict(ala2_generator_file: Path, tmp_path: Path) -> None:
    printed = run(tmp_path, "free_energy.py", "--generator", str(ala2_generator_file))
    assert "solvation free energy:" in printed
    result = json.loads((tmp_path / "free_energy.json").read_text())
    assert result["verdict"] == "do not believe"  # the generator was not trained
    assert result["verdict_sentence"] in printed


BEFORE, AFTER = "replica_exchange_before.py", "replica_exchange_after.py"


def test_a_replica_exchange_script_takes_the_generator_in_five_lines() -> None:
    before, after = ((EXAMPLES / name).read_text().split('"""', 2)[2].splitlines() for name in (BEFORE, AFTER))
    changes = [line for line in difflib.ndiff(before, after) if line[2:].strip()]
    added = [line for line in changes if line.startswith("+ ")]
    assert 0 < len(added) <= 5
    assert len([line for line in changes if line.startswith("- ")]) <= len(added)


@pytest.mark.slow
@pytest.mark.parametrize("name", [BEFORE, AFTER])
def test_the_replica_exchange_script_runs_and_resumes_with_and_without_the_generator(
    name: str, ala2_generator_file: Path, tmp_path: Path
) -> None:
    from openmm import app

    from openmm_bg.systems import peptide

    molecule = peptide("ACE-ALA-NME")
    shutil.copy(ala2_generator_file, tmp_path / "generator.bg")
    with open(tmp_path / "molecule.pdb", "w") as stream:
        app.PDBFile.writeFile(molecule.topology, molecule.positions * 10.0, stream)
    for iterations in (1, 2):
        command = [sys.executable, EXAMPLES / name, "molecule.pdb", "1"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert f"{iterations} iterations in replica_exchange.nc" in ran.stdout


def test_a_simulation_script_takes_the_generator_in_five_lines() -> None:
    names = ("simulation_before.py", "simulation_after.py")
    before, after = ((EXAMPLES / name).read_text().split('"""', 2)[2].splitlines() for name in names)
    changes = [line for line in difflib.ndiff(before, after) if line[2:].strip() and line[0] in "+-"]
    assert 0 < len(changes) <= 5
    assert all("# NEW" in line for line in changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simulation_before.py", "simulation_after.py"])
def test_the_simulation_script_runs_and_resumes_with_and_without_the_generator(
    name: str, ala2_generator_file: Path, tmp_path: Path
) -> None:
    from openmm import app

    from openmm_bg.systems import peptide

    molecule = peptide("ACE-ALA-NME")
    shutil.copy(ala2_generator_file, tmp_path / "generator.bg")
    with open(tmp_path / "molecule.pdb", "w") as stream:
        app.PDBFile.writeFile(molecule.topology, molecule.positions * 10.0, stream)
    for steps in (1000, 2000):
        command = [sys.executable, EXAMPLES / name, "molecule.pdb", "1000"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert f"{steps} steps in trajectory.dcd" in ran.stdout
    assert len((tmp_path / "energies.csv").read_text().splitlines()) == 5
    log = tmp_path / "generator.csv"
    assert log.exists() == (name == "simulation_after.py")
    if log.exists():
        assert [line.split(",")[0] for line in log.read_text().splitlines()[1:]] == ["500", "1000", "1500", "2000"]
        assert log.read_text().splitlines()[-1].split(",")[2] == "256"


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text()
    assert [example.name for example in EXAMPLES.glob("*.py") if f'"{example.name}"' not in source] == []
