"""`openmm-bg free-energy`, the frames that it needs of a chain, and what the report says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_fixtures import write_run
from typer.testing import CliRunner

from openmm_bg.cli import app
from openmm_bg.cli.frames import FrameKeeper
from openmm_bg.report import RunFolder, write_report
from openmm_bg.report.records import Frames
from openmm_bg.systems import peptide


def run(*arguments: object):
    return CliRunner().invoke(app, ["free-energy", *map(str, arguments)])


def exchange(folder: Path, distance: float, n: int = 800) -> Path:
    """energy.csv and log.csv of two wells on a line, a distance apart."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    states = rng.permuted(np.tile([0, 1], (n, 1)), axis=1)
    x = distance * states + rng.standard_normal((n, 2))
    energies = 0.5 * (x[:, :, None] - np.array([0.0, distance])) ** 2
    np.savetxt(folder / "energy.csv", energies.reshape(n, 4), delimiter=",")
    log = np.column_stack([np.arange(n), 40 * np.arange(n), states])
    np.savetxt(folder / "log.csv", log, delimiter=",", fmt="%d", header="Iteration,Step,Replica_0,Replica_1")
    return folder


def test_sound_replica_exchange_is_written_and_ends_well(tmp_path: Path) -> None:
    folder = exchange(tmp_path / "near", 1.0)
    ended = run(folder, "--temperature", 300)
    assert ended.exit_code == 0, ended.output
    assert "Believe these numbers" in ended.output
    found = json.loads((folder / "free_energy.json").read_text())
    assert abs(found["differences_kT"][0][1]) < 4.0 * found["errors_kT"][0][1]
    assert found["temperatures_K"] == [300.0, 300.0]
    assert found["convergence"]["fractions"][-1] == 1.0
    last = found["convergence"]["forward_kT"][-1]["value"]
    assert last == pytest.approx(found["differences_kT"][0][1], abs=1e-6)


def test_a_refusal_has_an_exit_status_and_says_why(tmp_path: Path) -> None:
    folder = exchange(tmp_path / "far", 7.0)
    ended = run(folder / "energy.csv", "--output", tmp_path / "far.json")
    assert ended.exit_code == 3
    assert "Do not believe these numbers" in ended.output
    assert "overlap" in ended.output
    assert json.loads((tmp_path / "far.json").read_text())["verdict"] == "do not believe"


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_what_holds_no_free_energies_is_wrong_use(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    ended = run(tmp_path / name)
    assert ended.exit_code == 2


@pytest.fixture(scope="module")
def alanine():
    return peptide("ACE-ALA-NME")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, alanine, ala2_generator_file: Path) -> RunFolder:
    """A run folder with an untrained generator and frames that are its own draws: not samples of the molecule."""
    from openmm_bg.generator import BoltzmannGenerator

    folder = write_run(tmp_path_factory.mktemp("folder") / "run", alanine)
    shutil.copy(ala2_generator_file, folder.generator_file)
    generator = BoltzmannGenerator.load(folder.generator_file)
    folder.update_settings({"generator": generator.content_hash, "timestep": 0.002, "friction": 1.0})
    drawn = generator.sample(60, rng=1).positions
    Frames(drawn.astype(np.float32), 3 * np.arange(60), 3).save(folder.chain_frames_file)
    return folder


def test_a_run_folder_gives_absolute_free_energies_populations_and_an_honest_refusal(finished: RunFolder) -> None:
    ended = run(finished.path, "--n-samples", 200, "--platform", "Reference")
    assert ended.exit_code == 3, ended.output
    assert "absolute free energy of the molecule" in ended.output
    found = json.loads(finished.free_energy_file.read_text())
    assert found["states"] == ["generator", "molecule"]
    assert found["n_samples"][0] == 200
    assert "8 pi" not in found["absolute"]["molecule"]["measure"]
    assert found["absolute"]["molecule"]["measure"].startswith("dx in nm^66")
    assert found["absolute"]["molecule"]["volume_nm3"] == pytest.approx(1.6605, abs=1e-4)
    populations = [estimate["value"] for estimate in found["populations"].values()]
    assert sum(populations) == pytest.approx(1.0)
    assert len(found["surface"]["free_energy_kJ_per_mol"]) == 36

    page = write_report(finished.path).read_text()
    assert 'id="free-energy"' in page
    assert found["verdict_sentence"] in page
    assert "Overlap of the states" in page or "<svg" in page.split('id="free-energy"')[1]
    summary = json.loads(finished.summary_file.read_text())
    assert summary["verdict"] == "do not believe"
    assert "free energies by MBAR" in summary["verdict_sentence"]


def test_free_energies_of_another_generator_are_not_reported(finished: RunFolder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    folder = RunFolder.open(copy)
    folder.update_settings({"generator": "another"})
    for file in (folder.chain_file, folder.langevin_file):  # so that the report is quick
        file.unlink()
    assert 'id="free-energy"' not in write_report(copy).read_text()


def test_a_folder_without_frames_says_what_to_do(tmp_path: Path, finished: RunFolder) -> None:
    copy = tmp_path / "old"
    shutil.copytree(finished.path, copy)
    (copy / "chain_frames.npz").unlink()
    ended = run(copy)
    assert ended.exit_code == 2
    assert "openmm-bg sample" in ended.output


def offer(keeper: FrameKeeper, first: int, n: int) -> None:
    """Offer states first, ..., first + n - 1, each with its number as its first coordinate."""
    positions = np.zeros((n, 2, 3))
    positions[:, 0, 0] = first + np.arange(n)
    keeper.add(first, positions, np.arange(n))


def test_frames_are_evenly_spaced_bounded_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "chain_frames.npz"
    keeper = FrameKeeper(path, 2, 0)
    for first in range(0, 9000, 90):
        offer(keeper, first, 90)
    keeper.save()
    stored = Frames.load(path)
    assert 2048 <= len(stored) <= 4096
    np.testing.assert_array_equal(stored.rows, np.arange(0, 9000, stored.stride))
    np.testing.assert_array_equal(stored.positions[:, 0, 0], stored.rows)

    again = FrameKeeper(path, 2, 8000)  # the last thousand states were not saved with the chain
    offer(again, 8000, 50)
    again.save()
    stored = Frames.load(path)
    np.testing.assert_array_equal(stored.rows, np.arange(0, 8050, stored.stride))
    np.testing.assert_array_equal(stored.positions[:, 0, 0], stored.rows)


def test_frames_of_a_chain_that_is_gone_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "chain_frames.npz"
    keeper = FrameKeeper(path, 2, 0)
    offer(keeper, 0, 100)
    keeper.save()
    fresh = FrameKeeper(path, 2, 0)
    offer(fresh, 0, 10)
    fresh.save()
    assert len(Frames.load(path)) == 10
