"""The command line for proteins: what `--system` names, replica exchange, reduced coordinates, a walk, the report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from openmm import app, unit
from test_cli import interrupt, refused, run

from openmm_bg.cli.molecules import PROTEINS, Preparation, build, is_folded, name_of, structure_file
from openmm_bg.cli.simulate import SimulateOptions, _data_temperature
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.moves.kernel import restored_kernel
from openmm_bg.report import RunFolder, write_report
from openmm_bg.report.records import Chain
from openmm_bg.report.side_chains import shown_torsion, side_chain_speed
from openmm_bg.report.walk_checks import _energies_agree, _rotamers_agree
from openmm_bg.systems import MolecularSystem, peptide
from openmm_bg.training.data import TrajectoryData

REPLICAS = ("--replicas", "3", "--max-temperature", "600", "--platform", "Reference")
WALK = ("--seconds", "3", "--tune", "2", "--n-proposals", "24", "--n-steps", "20", "--platform", "Reference")


@pytest.fixture(scope="module")
def leucine() -> MolecularSystem:
    return peptide("ACE-LEU-NME")


@pytest.fixture(scope="module")
def pdb_file(leucine, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pdb") / "leucine.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(leucine.topology, leucine.positions * unit.nanometer, file)
    return path


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a reduced generator of a small side chain, and a walk with it."""
    path = tmp_path_factory.mktemp("walk") / "run"
    options = ("--timestep", "4", "--hydrogen-mass", "3", "--platform", "Reference")
    for command in (
        ("simulate", path, "--system", "ACE-LEU-NME", "--seconds", "3", *options),
        ("train", path, "--coordinates", "reduced", "--frozen", "keep", "--seconds", "8"),
    ):
        result = run(*command)
        assert result.returncode == 0, result.stderr
    return path, run("sample", path, *WALK)


# ------------------------------------------------------------------------------------------------------ what is named


def test_a_system_is_a_name_a_file_or_a_sequence(pdb_file) -> None:
    assert set(PROTEINS) == {"chignolin", "villin"}
    for system, folded in (("chignolin", True), (str(pdb_file), True), ("ACE-ALA-NME", False), ("YGGFM", False)):
        assert is_folded(system) is folded
    assert structure_file("nowhere/protein") == Path("nowhere/protein")
    assert name_of(str(pdb_file)) == "leucine.pdb"
    assert name_of("villin") == "villin"


def test_each_kind_of_name_is_built(pdb_file, leucine) -> None:
    field = SimulateOptions().forcefield
    by_sequence = build("ACE-LEU-NME", field, 3.0, Preparation())
    np.testing.assert_allclose(by_sequence.positions, leucine.positions, atol=0.01)
    assert min(by_sequence.system.getParticleMass(i)._value for i in range(by_sequence.n_atoms)) == pytest.approx(3.0)
    assert build(str(pdb_file), field, None, Preparation()).n_atoms == leucine.n_atoms
    assert build("chignolin", field, None, Preparation()).n_atoms == 166
    with pytest.raises(ValueError, match="only a PDB file can be prepared"):
        build("chignolin", field, None, Preparation(add_hydrogens=True))


def test_hydrogens_are_added_if_asked_for(pdb_file, leucine, tmp_path) -> None:
    heavy = tmp_path / "heavy.pdb"
    lines = [line for line in pdb_file.read_text().splitlines() if line[76:78].strip() != "H"]
    heavy.write_text("\n".join(line for line in lines if not line.startswith("CONECT")) + "\n")
    field = SimulateOptions().forcefield
    with pytest.raises(ValueError, match="add_hydrogens"):
        build(str(heavy), field, None, Preparation())
    assert build(str(heavy), field, None, Preparation(add_hydrogens=True)).n_atoms == leucine.n_atoms


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--system", "villin", "--pdb", "x.pdb"), "2 molecules were named"),
        (("--system", "none/such.pdb"), "There is no file none/such.pdb"),
        (("--system", "VILIN-2"), "Unknown residue 'VILIN'"),
        (("--substitute", "NLE"), "write it as NLE=LEU"),
        (("--max-temperature", "500"), "ask for several with --replicas"),
        (("--replicas", "3", "--max-temperature", "250"), "give a higher --max-temperature"),
        (("--hydrogen-mass", "-1"), "the hydrogen mass is -1.0"),
        (("--add-hydrogens",), "only a PDB file can be prepared"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message) -> None:
    assert message in refused("simulate", tmp_path / "run", *options)


def test_the_temperature_of_the_data_suits_the_molecule_and_the_method() -> None:
    assert _data_temperature(SimulateOptions(), {}) == 700.0
    assert _data_temperature(SimulateOptions(system="villin"), {}) == 400.0
    assert _data_temperature(SimulateOptions(system="villin", n_replicas=4, temperature=310.0), {}) == 310.0
    assert _data_temperature(SimulateOptions(system="villin", data_temperature=350.0), {}) == 350.0
    # A run made before structures had a temperature of their own goes on as it began.
    assert _data_temperature(SimulateOptions(system="a.pdb"), {"data_temperature": 700.0}) == 700.0


# --------------------------------------------------------------------------------------------------- replica exchange


def test_replicas_leave_frames_of_the_lowest_temperature_and_say_what_they_cost(tmp_path) -> None:
    path = tmp_path / "run"
    result = run("simulate", path, *REPLICAS, "--seconds", "2")
    assert result.returncode == 0, result.stderr
    data = TrajectoryData.load(path / "data.npz")
    assert data.temperature == 300.0
    assert data.energies.shape[1] >= 20
    assert f"They cost {data.cost.n_steps:,} energy evaluations and" in result.stdout
    summary = json.loads((path / "summary.json").read_text())
    assert summary["data_energy_evaluations"] == data.cost.n_steps
    assert summary["data_seconds"] == data.cost.seconds
    assert len(summary["exchange_acceptance"]) == 2
    phase = RunFolder.open(path).phases["simulate"]
    assert "replica exchange of 3 up to 600 K" in phase["remark"]
    assert phase["n_evaluations"] == data.cost.n_steps
    for noise in ("JAX", "Warning", "experimental", "cite", "WARNING"):
        assert noise not in result.stdout + result.stderr
    assert "n_replicas 3 (asked for: 1)" in refused("simulate", path, "--seconds", "2", "--platform", "Reference")


def test_replicas_that_were_interrupted_or_killed_go_on(tmp_path) -> None:
    path = tmp_path / "run"
    arguments = ("simulate", path, *REPLICAS, "--seconds", "8")
    storage = path / "simulation" / "replicas.nc"
    result = interrupt(*arguments, when_exists=storage, after=1.0)
    assert result.returncode == 130
    assert "resume with" in result.stderr
    assert "Traceback" not in result.stderr
    spent = json.loads((path / "simulation" / "replicas.json").read_text())["seconds"]
    process = subprocess.Popen(
        [sys.executable, "-m", "openmm_bg", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        if json.loads((path / "simulation" / "replicas.json").read_text())["seconds"] > spent:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (path / "data.npz").exists()
    assert run(*arguments).returncode == 0
    data = TrajectoryData.load(path / "data.npz")
    assert data.cost.seconds > spent
    assert data.energies.shape[1] >= 20


def test_a_folder_of_before_replicas_is_one_of_plain_dynamics(tmp_path) -> None:
    path = tmp_path / "run"
    assert run("simulate", path, "--seconds", "1", "--platform", "Reference").returncode == 0
    content = json.loads((path / "run.json").read_text())
    for key in ("n_replicas", "max_temperature", "hydrogen_mass", "preparation"):
        del content["settings"][key]
    (path / "run.json").write_text(json.dumps(content))
    assert run("simulate", path, "--seconds", "1", "--platform", "Reference").returncode == 0
    assert "n_replicas 1 (asked for: 3)" in refused("simulate", path, *REPLICAS, "--seconds", "1")


# -------------------------------------------------------------------------------- reduced coordinates and the walk


def test_training_of_reduced_coordinates_needs_no_energies(walked) -> None:
    folder = RunFolder.open(walked[0])
    generator = BoltzmannGenerator.load(folder.generator_file)
    assert generator.keeps_frozen
    assert folder.phases["train"]["n_evaluations"] == 0
    assert folder.asked("train")["coordinates"] == "reduced"
    assert "coordinates 'reduced' (asked for: 'full')" in refused("train", walked[0], "--seconds", "8")


def test_the_walk_is_tuned_before_the_chain_and_fixed(walked) -> None:
    path, result = walked
    assert result.returncode == 0, result.stderr
    assert "Walk tuned and fixed" in result.stdout
    folder = RunFolder.open(path)
    tuned = restored_kernel(folder.phases["tune"]["kernel"])
    assert tuned.tuning.n_scans >= 40
    assert tuned.tuning.temperature == 300.0
    chain = Chain.load(folder.chain_file)
    np.testing.assert_array_equal(np.flatnonzero(~chain.proposed), np.arange(0, len(chain), 25))
    counts = folder.phases["sample"]["by_kind"]
    assert sum(tried for _, tried in counts.values()) == chain.proposed.sum()
    assert sum(taken for taken, _ in counts.values()) == chain.accepted.sum()
    # Velocities are drawn anew at each scan: the chain has a short timestep, dynamics alone that of the data.
    asked = folder.asked("sample")
    assert (asked["timestep"], asked["friction"]) == (0.002, 5.0)
    assert "at 4 fs" in folder.phases["langevin"]["remark"]
    assert set(counts) == {"side_chain", "rotamer", "backbone", "independence"}


def test_chi1_of_both_chains_is_recorded(walked) -> None:
    folder = RunFolder.open(walked[0])
    chain, alone = Chain.load(folder.chain_file), Chain.load(folder.langevin_file)
    assert chain.chi.shape == (len(chain), 1)
    assert alone.chi.shape == (len(alone), 1)
    assert np.isfinite(chain.chi).all()
    # Both began where the equilibration ended.
    np.testing.assert_allclose(chain.chi[0], alone.chi[0], atol=1e-6)


def test_a_generator_without_density_is_not_reweighted_and_the_page_says_why(walked) -> None:
    path, _ = walked
    assert not (path / "generator.npz").exists()
    assert "has no density to reweight with: it was made with frozen='keep'" in refused(
        "sample", path, *WALK, "--part", "generator"
    )
    assert run("report", path).returncode == 0
    page = (path / "report.html").read_text()
    assert "Nothing is reweighted here" in page
    assert 'id="side-chains"' in page
    assert "LEU2" in page
    summary = json.loads((path / "summary.json").read_text())
    assert summary["missing"] == []
    assert {"rotamers agree with dynamics", "mean energies agree"} <= {c["name"] for c in summary["checks"]}
    assert set(summary["chi1_resolved"]) == {"bg_langevin", "langevin"}
    assert summary["verdict"] != "believe"  # other folds are not known


def test_a_walk_goes_on_with_the_steps_it_began_with(walked, tmp_path) -> None:
    path = tmp_path / "longer"
    shutil.copytree(walked[0], path)
    before = RunFolder.open(path).phases["tune"]
    n_before = len(Chain.load(path / "chain.npz"))
    longer = ("--seconds", "5", *WALK[2:], "--part", "chain")
    assert run("sample", path, *longer).returncode == 0
    assert len(Chain.load(path / "chain.npz")) > n_before
    assert RunFolder.open(path).phases["tune"] == before
    assert "kernel 'walk' (asked for: 'independence')" in refused("sample", path, *WALK, "--kernel", "independence")
    assert "timestep 0.002 (asked for: 0.001)" in refused("sample", path, *WALK, "--timestep", "1")
    folder = RunFolder.open(path)
    folder.restart_phase("tune")
    assert "does not say with which steps" in refused("sample", path, "--seconds", "8", *WALK[2:], "--part", "chain")


def test_the_same_walk_repeats_nothing(walked) -> None:
    path = walked[0]
    before = {name: (path / name).read_bytes() for name in ("chain.npz", "langevin.npz", "equilibrated.npz")}
    result = run("sample", path, *WALK)
    assert "is there already" in result.stdout
    assert {name: (path / name).read_bytes() for name in before} == before


# --------------------------------------------------------------------------------------------- side chains in reports


def telegraph(n: int, rate: float, seed: int) -> np.ndarray:
    """A torsion that jumps between two rotamers with a probability at each step; correlation time 1 / (2 rate)."""
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.random(n) < rate) % 2
    return np.where(state, np.pi, -np.pi / 3) + 0.1 * rng.standard_normal(n)


def chain_of(chi: np.ndarray, seconds: float) -> Chain:
    n = len(chi)
    flags = np.zeros(n, dtype=bool)
    torsions, times = np.zeros((n, 1)), np.linspace(0.0, seconds, n)
    return Chain(torsions, torsions, np.zeros(n), flags, flags, flags, times, np.zeros((1, 3)), chi)


def test_the_gain_is_the_ratio_of_relaxation_rates_per_second() -> None:
    fast = np.stack([telegraph(200_000, 0.05, seed) for seed in range(5)], axis=1)
    slow = np.stack([telegraph(200_000, 0.005, seed) for seed in range(5, 10)], axis=1)
    speed = side_chain_speed(chain_of(fast, 100.0), chain_of(slow, 50.0), [f"LEU{i}" for i in range(5)])
    assert speed is not None
    assert speed.n_resolved == (5, 5)
    for value, lower, upper in (speed.median_gain, speed.slow_gain):
        # Ten times as many jumps a state, and twice the time a state.
        assert lower < 5.0 < upper
        assert value == pytest.approx(5.0, rel=0.35)


def test_a_torsion_that_never_moved_is_not_called_fast() -> None:
    fast, stuck = telegraph(20_000, 0.05, 1)[:, None], telegraph(20_000, 0.0, 2)[:, None]
    speed = side_chain_speed(chain_of(stuck, 100.0), chain_of(fast, 100.0), ["LEU1"])
    assert speed is not None
    assert speed.n_resolved == (0, 1)
    value, _, upper = speed.median_gain
    assert np.isnan(value)
    assert upper < 1.0


def test_rotamers_and_energies_that_differ_from_dynamics_are_bad_and_equal_ones_are_not() -> None:
    def skewed(seed: int, stays: float) -> np.ndarray:
        rng = np.random.default_rng(seed)
        state = np.zeros(20_000, dtype=int)
        for i in range(1, len(state)):
            leaves = 0.05 if state[i - 1] else 0.05 * stays
            state[i] = state[i - 1] ^ (rng.random() < leaves)
        return np.where(state, np.pi, -np.pi / 3)[:, None] + 0.1 * rng.standard_normal((len(state), 1))

    def energetic(seed: int, mean: float) -> Chain:
        chain = chain_of(skewed(seed, 1.0), 100.0)
        return dataclasses.replace(chain, energy=mean + np.random.default_rng(seed).standard_normal(len(chain)))

    def status_of_rotamers(stays: float) -> str:
        first, second = chain_of(skewed(1, 1.0), 100.0), chain_of(skewed(2, stays), 100.0)
        speed = side_chain_speed(first, second, ["LEU1"])
        assert speed is not None
        return _rotamers_agree(first, second, speed).status

    assert status_of_rotamers(1.0) == "good"
    assert status_of_rotamers(2.0) == "bad"
    assert _energies_agree(energetic(1, 0.0), energetic(2, 0.0)).status == "good"
    assert _energies_agree(energetic(1, 0.0), energetic(2, 0.1)).status == "bad"


def test_the_torsion_that_is_shown_moved_a_few_times_and_is_the_slowest_of_those(leucine) -> None:
    from openmm_bg.report.side_chains import chi1_torsions

    torsions = chi1_torsions(leucine.topology)
    assert [torsion.residue for torsion in torsions] == ["LEU2"]
    assert shown_torsion(leucine.positions[None, None].repeat(30, axis=1), torsions) == 0
    assert shown_torsion(leucine.positions[None, None], []) == 0


def test_a_chain_of_before_side_chains_were_recorded_is_read(walked, tmp_path) -> None:
    chain = Chain.load(walked[0] / "chain.npz")
    stored = {name: value for name, value in vars(chain).items() if name != "chi"}
    np.savez(tmp_path / "chain.npz", **stored)
    old = Chain.load(tmp_path / "chain.npz")
    assert old.chi.shape == (len(chain), 0)
    assert Chain.concatenate([old, old]).chi.shape == (2 * len(chain), 0)


# ----------------------------------------------------------------------------------------------------------- the demo


@pytest.mark.slow
@pytest.mark.parametrize(("system", "n_atoms"), [("chignolin", 166), ("villin", 582)])
def test_quick_demo_of_a_protein_leaves_a_report_and_repeats_nothing(tmp_path, system, n_atoms) -> None:
    path = tmp_path / "demo"
    result = run("demo", "-o", path, "--quick", "--system", system)
    assert result.returncode == 0, result.stderr
    folder = RunFolder.open(path)
    assert folder.read_system().n_atoms == n_atoms
    settings = folder.settings
    assert (settings["name"], settings["timestep"], settings["hydrogen_mass"]) == (system, 0.004, 3.0)
    assert folder.asked("train")["frozen"] == "keep"
    assert folder.asked("sample")["kernel"] == "walk"
    assert "Nothing is reweighted here" in folder.report_file.read_text()
    before = {name: (path / name).read_bytes() for name in ("generator.bg", "chain.npz", "langevin.npz")}
    assert run("demo", "-o", path, "--quick", "--system", system).returncode == 0
    assert {name: (path / name).read_bytes() for name in before} == before
    assert "ACE-ALA-NME" in refused("demo", path, "--quick")
    write_report(path)
