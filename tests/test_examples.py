"""The examples run, one after the other, as their first lines say."""

from __future__ import annotations

import difflib
import json
import re
import shlex
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


# ---------------------------------------------------------------------------------------------------------- proteins


def follow(folder: Path, name: str, n_atoms: int, *arguments: str) -> None:
    """Run an example of a protein, and look at what it printed and left."""
    from openmm_bg import BoltzmannGenerator

    printed = run(folder, name, *arguments)
    assert f"{n_atoms} atoms" in printed
    assert "400 frames cost 2,200 steps" in printed
    stages = re.findall(r"^(nll.*): (\d+) steps in", printed, flags=re.MULTILINE)
    assert stages == [("nll", "2"), ("nll + w2", "1"), ("nll + w2 + kl", "0"), ("nll + kl", "0")]
    assert printed.count("energy evaluations are used up") == 2
    assert re.search(r"^side_chain: .*% of [\d,]+ proposals accepted$", printed, flags=re.MULTILINE)
    assert "1000 structures" in printed
    assert re.search(r"^New metastable states: (None|\d)", printed, flags=re.MULTILINE)
    results = folder / Path(name).stem
    generator = BoltzmannGenerator.load(results / "generator.bg")
    assert generator.n_atoms == n_atoms
    assert generator.keeps_frozen
    assert (results / "walk.dcd").stat().st_size > 12 * n_atoms


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_atoms"), [("chignolin.py", 166), ("hp35.py", 582)])
def test_a_protein_goes_from_its_structure_to_a_verdict(name: str, n_atoms: int, tmp_path: Path) -> None:
    follow(tmp_path, name, n_atoms)


@pytest.mark.slow
def test_a_pdb_file_with_water_and_without_hydrogens_goes_to_a_verdict(tmp_path: Path) -> None:
    import io

    from openmm import app

    from openmm_bg.systems import chignolin

    molecule, page = chignolin(), io.StringIO()
    app.PDBFile.writeFile(molecule.topology, molecule.positions * 10.0, page)
    atoms = [line for line in page.getvalue().splitlines() if line.startswith("ATOM") and line[76:78].strip() != "H"]
    water = f"HETATM  900  O   HOH B 900    {20.0:8.3f}{20.0:8.3f}{20.0:8.3f}  1.00  0.00           O"
    (tmp_path / "protein.pdb").write_text("\n".join([*atoms, "TER", water, "END"]) + "\n")
    follow(tmp_path, "protein_g.py", molecule.n_atoms, "protein.pdb")


def test_examples_of_proteins_take_the_same_steps() -> None:
    assert (EXAMPLES / "protein_recipe.py").exists()
    for name in ("chignolin.py", "hp35.py", "protein_g.py"):
        called = re.findall(r"protein_recipe\.(\w+)\(", (EXAMPLES / name).read_text())
        assert called == ["parser", "dynamics", "trained", "walk", "new_structures"]


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text()
    assert [example.name for example in EXAMPLES.glob("*.py") if f'"{example.name}"' not in source] == []


# ------------------------------------------------------------------------------------------------- several machines


def several_machines_command(program: str) -> list[str]:
    """The command of the page on several machines that starts with a program, with that of this Python."""
    page = (EXAMPLES.parent / "docs" / "several_machines.md").read_text()
    (line,) = re.findall(rf"^{program} .*$", page, flags=re.MULTILINE)
    words = [
        str(Path(sys.executable).with_name(word)) if word in (program, "python") else word for word in line.split()
    ]
    return [str(EXAMPLES / word) if word.endswith(".py") else word for word in words]


@pytest.mark.slow
@pytest.mark.skipif(not Path(sys.executable).with_name("mpiexec").exists(), reason="no mpiexec: pip install mpich")
def test_replica_exchange_in_two_processes_goes_on_where_it_stopped(ala2_generator_file: Path, tmp_path: Path) -> None:
    from openmm import app

    from openmm_bg.systems import peptide

    molecule = peptide("ACE-ALA-NME")
    shutil.copy(ala2_generator_file, tmp_path / "generator.bg")
    with open(tmp_path / "molecule.pdb", "w") as stream:
        app.PDBFile.writeFile(molecule.topology, molecule.positions * 10.0, stream)
    command = several_machines_command("mpiexec")
    assert command[-3:] == [str(EXAMPLES / "replica_exchange_mpi.py"), "molecule.pdb", "200"]
    for iterations in (1, 2):
        ran = subprocess.run([*command[:-1], "1"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert f"{iterations} iterations in replica_exchange.nc" in ran.stdout
        assert "Exception ignored" not in ran.stderr


@pytest.mark.slow
def test_training_in_two_processes_leaves_a_generator(tmp_path: Path) -> None:
    from openmm import app

    from openmm_bg import BoltzmannGenerator
    from openmm_bg.systems import peptide
    from openmm_bg.training.simulate import simulate

    molecule = peptide("ACE-ALA-NME")
    with open(tmp_path / "molecule.pdb", "w") as stream:
        app.PDBFile.writeFile(molecule.topology, molecule.positions * 10.0, stream)
    simulate(molecule, 700.0, n_steps=20_000, stride=50, seed=1).save(tmp_path / "hot.npz")
    command = several_machines_command("torchrun")
    assert command[-4:] == [str(EXAMPLES / "train_in_processes.py"), "molecule.pdb", "hot.npz", "3600"]
    ran = subprocess.run([*command[:-1], "5"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "ESS/N" in ran.stdout
    assert BoltzmannGenerator.load(tmp_path / "generator.bg").n_atoms == molecule.topology.getNumAtoms()


SLURM = sorted((EXAMPLES / "slurm").glob("*.sh"))


@pytest.mark.parametrize("script", SLURM, ids=lambda script: script.name)
def test_slurm_scripts_are_bash_and_start_an_example(script: Path) -> None:
    """There is no Slurm here: the syntax, the example, its number of arguments and torchrun's options are checked."""
    from torch.distributed.run import get_args_parser

    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert (script.stat().st_mode & 0o111) != 0
    lines = script.read_text().replace("\\\n", " ").splitlines()
    (command,) = [words for line in lines if (words := shlex.split(line, comments=True))[:1] in (["mpiexec"], ["srun"])]
    place = next(i for i, word in enumerate(command) if word.endswith(".py"))
    usage = (EXAMPLES / command[place]).read_text().split('"""')[1]
    (documented,) = re.findall(rf"{command[place]}(.*)$", usage, flags=re.MULTILINE)
    assert len(command[place + 1 :]) == len(documented.split())
    if command[0] == "srun":
        assert command[1] == "torchrun"
        options = get_args_parser().parse_args(command[2:])
        assert options.training_script == command[place]
    else:
        assert command[:place] == ["mpiexec", "-n", "$SLURM_NTASKS", "python", "-m", "mpi4py"]
    assert f"sbatch {script.name}" in (EXAMPLES.parent / "docs" / "several_machines.md").read_text()


def test_there_is_a_slurm_script_for_each_of_both() -> None:
    assert [script.name for script in SLURM] == ["replica_exchange.sh", "train.sh"]
