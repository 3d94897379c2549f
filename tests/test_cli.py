from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from openmm_bg.cli import app
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.report import RunFolder
from openmm_bg.report.records import Chain
from openmm_bg.systems import peptide

SAMPLED = ("--seconds", "2", "--n-samples", "500", "--n-proposals", "32", "--platform", "Reference")
COMMANDS = ("demo", "simulate", "train", "sample", "report", "info")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openmm_bg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def interrupt(*arguments: str | Path, when_exists: Path, after: float) -> subprocess.CompletedProcess[str]:
    """Run a command and send it Ctrl-C some seconds after a file has appeared."""
    command = [sys.executable, "-m", "openmm_bg", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120.0
    while not when_exists.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    """A folder with a molecule and a second of dynamics."""
    path = tmp_path_factory.mktemp("cli") / "run"
    result = run("simulate", "-o", path, "--seconds", "1", "--seed", "3", "--platform", "reference")
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="module")
def sampled(simulated, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same with an untrained generator and two seconds of both chains."""
    path = tmp_path_factory.mktemp("cli") / "sampled"
    shutil.copytree(simulated, path)
    save_generator(RunFolder.open(path))
    return path, run("sample", path, *SAMPLED)


def save_generator(folder: RunFolder) -> None:
    molecule = folder.read_system()
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, 300.0, positions=molecule.positions, seed=1
    )
    generator.save(folder.generator_file)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "160", "TERM": "dumb"})
    assert result.exit_code == 0
    assert "--platform" in result.output
    if command != "info":
        assert "--seed" in result.output
        assert "--output" in result.output


def test_help_imports_nothing_heavy():
    code = "import sys, openmm_bg.cli; print({'torch', 'openmm', 'openmmtools', 'pymbar'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_simulate_leaves_what_the_next_command_reads(simulated):
    folder = RunFolder.open(simulated)
    assert folder.read_system().n_atoms == 22
    assert folder.is_finished("simulate")
    summary = json.loads(folder.summary_file.read_text())
    assert summary["seed"] == 3
    assert summary["platform"] == "Reference"
    assert summary["n_frames"] > 0
    assert "openmm" in summary["versions"]


def test_simulate_again_changes_nothing(simulated):
    before = (simulated / "data.npz").read_bytes()
    result = run("simulate", "-o", simulated, "--seconds", "1", "--seed", "3", "--platform", "reference")
    assert result.returncode == 0
    assert (simulated / "data.npz").read_bytes() == before


def test_interrupted_simulation_is_resumed(tmp_path):
    path = tmp_path / "run"
    arguments = ("simulate", path, "--seconds", "4", "--platform", "Reference")
    result = interrupt(*arguments, when_exists=path / "simulation", after=1.0)
    assert result.returncode == 130
    assert "resume with" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (path / "data.npz").exists()
    assert run(*arguments).returncode == 0
    assert RunFolder.open(path).is_finished("simulate")


def test_sample_runs_both_chains_for_the_same_wall_time(sampled):
    path, result = sampled
    assert result.returncode == 0, result.stderr
    folder = RunFolder.open(path)
    chain, alone = Chain.load(folder.chain_file), Chain.load(folder.langevin_file)
    assert chain.seconds[-1] == pytest.approx(2.0, abs=0.7)
    assert alone.seconds[-1] == pytest.approx(2.0, abs=0.7)
    phases = folder.phases
    assert phases["sample"]["n_proposed"] == chain.proposed.sum()
    assert phases["langevin"]["n_evaluations"] > 0
    assert json.loads(folder.summary_file.read_text())["ess_fraction"] > 0.0


def test_every_scanned_state_is_recorded(sampled):
    chain = Chain.load(RunFolder.open(sampled[0]).chain_file)
    # The relaxed structure, then cycles of 32 proposals and one state of dynamics.
    assert not chain.proposed[0]
    assert (len(chain) - 1) % 33 == 0
    np.testing.assert_array_equal(np.flatnonzero(~chain.proposed), np.arange(0, len(chain), 33))
    moved = np.any(np.diff(np.column_stack([chain.phi, chain.psi]), axis=0) != 0.0, axis=1)
    np.testing.assert_array_equal(moved[chain.proposed[1:]], chain.accepted[1:][chain.proposed[1:]])
    assert np.all(np.isfinite(chain.energy))


def test_nothing_is_said_about_other_packages(sampled):
    _, result = sampled
    for noise in ("JAX", "timeseries", "Warning", "deprecat", "never saved"):
        assert noise not in result.stdout + result.stderr


def test_sampling_continues_a_chain(sampled, tmp_path):
    path = tmp_path / "longer"
    shutil.copytree(sampled[0], path)
    before = Chain.load(path / "chain.npz")
    assert run("sample", path, "--part", "chain", "--seconds", "3", "--n-proposals", "32").returncode == 0
    after = Chain.load(path / "chain.npz")
    assert len(after) > len(before)
    np.testing.assert_array_equal(after.phi[: len(before)], before.phi)
    assert after.seconds[-1] >= 3.0


def test_interrupted_sampling_keeps_both_chains(sampled, tmp_path):
    path = tmp_path / "interrupted"
    shutil.copytree(sampled[0], path)
    for name in ("chain.npz", "langevin.npz"):
        (path / name).unlink()
    result = interrupt("sample", path, "--seconds", "100", when_exists=path / "langevin.npz", after=1.0)
    assert result.returncode == 130
    assert f"openmm-bg sample {path}" in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr
    assert len(Chain.load(path / "chain.npz")) > 1
    assert len(Chain.load(path / "langevin.npz")) > 1


def test_report_says_that_an_untrained_generator_is_not_to_be_believed(sampled):
    path, _ = sampled
    result = run("report", path)
    assert result.returncode == 0, result.stderr
    assert "Do not believe" in result.stdout
    assert (path / "report.html").exists()
    assert json.loads((path / "summary.json").read_text())["verdict"] == "do not believe"


def test_info_describes_a_model_file_and_a_folder(sampled):
    path, _ = sampled
    for arguments, expected in (
        ([path / "generator.bg"], "ACE-ALA-NME, 22 atoms"),
        ([path], "simulate"),
        ([], "Reference"),
    ):
        result = CliRunner().invoke(app, ["info", *map(str, arguments)])
        assert result.exit_code == 0
        assert expected in result.output


def refused(*arguments: str | Path) -> str:
    """The message of a command, in this process, that has to end with exit code 2."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def test_unknown_platform_is_a_usage_error():
    assert "'cuda'" in refused("info", "--platform", "Abacus")


def test_commands_without_a_folder_say_so():
    assert "no folder was named" in refused("train")


def test_next_command_names_the_one_that_is_missing(simulated, tmp_path):
    assert "is not a folder of openmm-bg" in refused("sample", tmp_path)
    assert "run `openmm-bg train" in refused("sample", simulated)


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "was not made by openmm-bg" in refused("simulate", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--sequence", "ACE-XYZ-NME", "Unknown residue 'XYZ'"),
        ("--temperature", "-5", "the temperature is -5.0; give a positive number"),
        ("--pdb", "/nowhere/at/all.pdb", "/nowhere/at/all.pdb"),
        ("--forcefield", "no-such-field.xml", "Cannot load the force field"),
    ],
)
def test_wrong_options_are_named(tmp_path, option, value, message):
    assert message in refused("simulate", tmp_path / "run", option, value)


def test_other_settings_do_not_overwrite_a_run(simulated):
    before = (simulated / "run.json").read_text()
    message = refused("simulate", simulated, "--seed", "3", "--temperature", "310")
    assert "temperature 300.0 (asked for: 310.0)" in message
    assert (simulated / "run.json").read_text() == before


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "cannot write to the folder" in refused("simulate", tmp_path / "file" / "run")


def test_generator_of_another_molecule_is_refused(simulated, tmp_path):
    path = tmp_path / "other"
    shutil.copytree(simulated, path)
    glycine = peptide("ACE-GLY-NME")
    BoltzmannGenerator.from_system(glycine.system, glycine.topology, 300.0, seed=1).save(path / "generator.bg")
    assert refused("sample", path).startswith("Error:")
    assert not (path / "chain.npz").exists()


def test_chain_is_not_continued_with_another_generator(sampled, tmp_path):
    path = tmp_path / "retrained"
    shutil.copytree(sampled[0], path)
    molecule = RunFolder.open(path).read_system()
    other = BoltzmannGenerator.from_system(molecule.system, molecule.topology, 310.0, seed=2)
    other.save(path / "generator.bg")
    before = (path / "chain.npz").read_bytes()
    assert "was sampled with another generator" in refused("sample", path, "--seconds", "10")
    assert (path / "chain.npz").read_bytes() == before


def test_the_same_sampling_repeats_nothing(sampled):
    path = sampled[0]
    before = {name: (path / name).read_bytes() for name in ("chain.npz", "langevin.npz", "generator.npz", "run.json")}
    result = run("sample", path, *SAMPLED)
    assert result.returncode == 0
    assert "is there already" in result.stdout
    assert {name: (path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--n-proposals", "64", "n_proposals 32 (asked for: 64)"),
        ("--n-steps", "50", "n_steps 250 (asked for: 50)"),
        ("--seed", "5", "seed 1 (asked for: 5)"),
        ("--seconds", "1", "seconds 2.0 (asked for: 1.0)"),
    ],
)
def test_a_chain_is_not_continued_with_other_options(sampled, option, value, message):
    path = sampled[0]
    before = (path / "run.json").read_text()
    assert message in refused("sample", path, *SAMPLED, option, value)
    assert (path / "run.json").read_text() == before


def test_samples_of_another_generator_are_drawn_anew(sampled, tmp_path):
    path = tmp_path / "anew"
    shutil.copytree(sampled[0], path)
    folder = RunFolder.open(path)
    molecule = folder.read_system()
    other = BoltzmannGenerator.from_system(molecule.system, molecule.topology, 310.0, seed=2)
    other.save(folder.generator_file)
    before = folder.generator_samples_file.read_bytes()
    assert run("sample", path, "--part", "generator", *SAMPLED).returncode == 0
    assert folder.generator_samples_file.read_bytes() != before
    assert folder.asked("reweight")["generator"] == other.content_hash
    assert folder.asked("sample")["generator"] != other.content_hash


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_damaged_model_file_is_named(sampled, tmp_path, content):
    path = tmp_path / "generator.bg"
    whole = (sampled[0] / "generator.bg").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert "generator.bg" in refused("info", path)


def test_traceback_is_there_for_those_who_ask(tmp_path):
    command = [sys.executable, "-m", "openmm_bg", "report", str(tmp_path)]
    environment = {**os.environ, "OPENMM_BG_TRACEBACK": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" in result.stderr


def test_interrupted_training_is_resumed(simulated, tmp_path):
    path = tmp_path / "training"
    shutil.copytree(simulated, path)
    result = interrupt("train", path, "--seconds", "60", when_exists=path / "training", after=3.0)
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert not (path / "generator.bg").exists()
    spent = time.monotonic()
    assert run("train", path, "--seconds", "4").returncode == 0
    assert time.monotonic() - spent < 60.0
    assert BoltzmannGenerator.load(path / "generator.bg").n_atoms == 22
    assert RunFolder.open(path).phases["train"]["seconds"] > 2.0


def test_quick_demo_leaves_a_complete_report_and_repeats_nothing(tmp_path):
    path = tmp_path / "demo"
    result = run("demo", "-o", path, "--quick", "--seed", "2")
    assert result.returncode == 0, result.stderr
    summary = json.loads((path / "summary.json").read_text())
    assert summary["missing"] == []
    for key in ("fraction_accepted", "ess_fraction", "pareto_k", "versions", "platform", "verdict"):
        assert summary[key] is not None, key
    assert summary["seed"] == 2
    methods = {"bg_langevin", "langevin", "reweighted_generator"}
    assert set(summary["phi_positive_population"]) == methods
    assert set(summary["n_round_trips"]) == methods - {"reweighted_generator"}
    phases = summary["wall_time_s"]
    assert phases["total"] == pytest.approx(
        sum(phases[p] for p in ("simulate", "train", "sample", "reweight", "report"))
    )
    assert summary["energy_evaluations"]["train"] > 0
    assert 'id="training"' in (path / "report.html").read_text()

    before = {name: (path / name).read_bytes() for name in ("generator.bg", "chain.npz", "langevin.npz")}
    assert run("demo", "-o", path, "--quick", "--seed", "2").returncode == 0
    assert {name: (path / name).read_bytes() for name in before} == before

    # Other options are not taken for these.
    assert "seed 2 (asked for: 3)" in refused("demo", path, "--quick", "--seed", "3")
    assert "seconds 2.0 (asked for: 30.0)" in refused("demo", path, "--seed", "2")
    message = refused("train", path, "--seconds", "600", "--seed", "2")
    assert "seconds 8.0 (asked for: 600.0)" in message
    assert "remove generator.bg, training, chain.npz, generator.npz" in message
    assert {name: (path / name).read_bytes() for name in before} == before
    (path / "generator.bg").unlink()
    shutil.rmtree(path / "training")
    assert "holds chain.npz and generator.npz" in refused("train", path, "--seconds", "4", "--seed", "2")
