from __future__ import annotations

import json
import math
import os
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from report_fixtures import POPULATIONS, generator_chain, stuck_chain, write_run, write_training

from openmm_bg.analysis.basins import in_rare_basin
from openmm_bg.report import RunFolder, write_report
from openmm_bg.report.records import Chain, GeneratorSamples
from openmm_bg.report.results import read_results
from openmm_bg.report.verdict import judge
from openmm_bg.systems import peptide


@pytest.fixture(scope="module")
def alanine():
    return peptide("ACE-ALA-NME")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, alanine):
    folder = write_run(tmp_path_factory.mktemp("run") / "demo", alanine)
    write_report(folder.path)
    return folder


def summary(folder: RunFolder) -> dict:
    return json.loads(folder.summary_file.read_text())


def test_page_needs_no_network_and_holds_every_section(finished):
    page = finished.report_file.read_text()
    assert not re.findall(r'(?:src|href)\s*=\s*"(?:https?:)?//', page)
    assert "<script" not in page
    assert "@import" not in page
    for section in (
        "verdict",
        "surfaces",
        "populations",
        "phi",
        "acceptance",
        "weights",
        "energies",
        "training",
        "cost",
    ):
        assert f'id="{section}"' in page
    assert page.count("<svg") == 6


def test_summary_holds_the_figures_that_the_chains_were_made_with(finished):
    figures = summary(finished)
    assert figures["fraction_accepted"] == pytest.approx(0.6, abs=0.02)
    assert 0.0 < figures["ess_fraction"] < 1.0
    assert figures["pareto_k"] < 0.7
    # Langevin ran beside the chain, so its seconds are not counted again.
    report_seconds = figures["wall_time_s"]["report"]
    assert figures["wall_time_s"]["total"] == pytest.approx(235.0 + report_seconds)
    for method in ("bg_langevin", "reweighted_generator"):
        population = figures["phi_positive_population"][method]
        assert abs(population["value"] - POPULATIONS[3]) < 4 * population["error"]
    assert figures["phi_positive_population"]["langevin"] == {"value": 0.0, "error": None}
    assert figures["n_round_trips"]["bg_langevin"] > 100
    assert figures["n_round_trips"]["langevin"] == 0
    assert figures["crossing_rate_upper_bound_per_s"]["langevin"] == pytest.approx(3 / 35, rel=0.01)
    assert figures["acceptance_by_basin"]["alpha_L"]["value"] == pytest.approx(0.6, abs=0.1)
    assert figures["seed"] == 0
    assert figures["platform"] == "Reference"
    assert figures["versions"]["openmm"]


def test_good_run_is_believed(finished):
    assert summary(finished)["verdict"] == "believe"
    assert "Believe these numbers: every check below passed." in finished.report_file.read_text()


def test_generator_that_lost_a_basin_is_seen_when_the_chain_was_there(tmp_path, alanine):
    folder = write_run(tmp_path / "lost", alanine, lost=3)
    chain = Chain.load(folder.chain_file)
    # Dynamics goes into the basin that is never proposed, and out again.
    chain.phi[5000:6000], chain.psi[5000:6000] = 1.0, 0.7
    chain.accepted[5000:6000] = False
    chain.save(folder.chain_file)
    verdict = judge(read_results(folder))
    assert verdict.answer == "do not believe"
    failed = {check.name for check in verdict.checks if check.status == "bad"}
    assert {"no basin lost", "chain and reweighting agree"} <= failed


def test_chain_that_disagrees_with_the_weights_is_not_believed(tmp_path, alanine):
    folder = write_run(tmp_path / "off", alanine)
    samples = GeneratorSamples.load(folder.generator_samples_file)
    shifted = samples.log_weights + np.where(samples.phi[:, 0] > 0, math.log(3.0), 0.0)
    shifted -= math.log(np.exp(shifted).sum())
    GeneratorSamples(samples.phi, samples.psi, samples.energy, shifted).save(folder.generator_samples_file)
    verdict = judge(read_results(folder))
    assert verdict.answer == "do not believe"
    assert "chain and reweighting agree" in verdict.sentence


def test_energies_that_disagree_are_not_believed(tmp_path, alanine):
    folder = write_run(tmp_path / "energy", alanine)
    samples = GeneratorSamples.load(folder.generator_samples_file)
    GeneratorSamples(samples.phi, samples.psi, samples.energy + 2.0, samples.log_weights).save(
        folder.generator_samples_file
    )
    failed = {check.name for check in judge(read_results(folder)).checks if check.status == "bad"}
    assert failed == {"mean energies agree"}


def test_long_wait_is_seen(tmp_path, alanine):
    folder = write_run(tmp_path / "wait", alanine)
    chain = Chain.load(folder.chain_file)
    chain.accepted[10_000:20_000] = False
    chain.save(folder.chain_file)
    failed = {check.name for check in judge(read_results(folder)).checks if check.status == "bad"}
    assert "longest wait" in failed


def test_moves_within_a_basin_are_no_way_into_it(tmp_path, alanine):
    folder = write_run(tmp_path / "within", alanine)
    chain = Chain.load(folder.chain_file)
    # Where the chain enters or leaves the rare basin, it was dynamics; proposals only move it within.
    rare = in_rare_basin(chain.phi[:, 0])
    chain.accepted[1:] = chain.proposed[1:] & (rare[1:] == rare[:-1])
    assert np.count_nonzero(chain.accepted & rare) > 20
    chain.save(folder.chain_file)
    check = {check.name: check for check in judge(read_results(folder)).checks}["no basin lost"]
    assert check.status == "bad"
    assert "ALA2 alpha_L entered 0 and left 0 times" in check.text


def test_worst_residue_decides(tmp_path):
    molecule = peptide("ACE-ALA-ALA-NME")
    folder = write_run(tmp_path / "two", molecule)  # of one residue, so far
    stuck = write_run(tmp_path / "stuck", molecule, seed=1, lost=3)
    for name, record in (("chain_file", Chain), ("langevin_file", Chain), ("generator_samples_file", GeneratorSamples)):
        good, other = (record.load(getattr(run, name)) for run in (folder, stuck))
        if name == "chain_file":  # dynamics in the second residue's rare basin, which is never proposed
            other.phi[5000:6000], other.psi[5000:6000] = 1.0, 0.7
        angles = {key: np.hstack([getattr(good, key), getattr(other, key)]) for key in ("phi", "psi")}
        replace(good, **angles).save(getattr(folder, name))
    checks = {check.name: check for check in judge(read_results(folder)).checks}
    for name in ("no basin lost", "independent samples", "both halves agree", "chain and reweighting agree"):
        assert checks[name].status != "good", name
        assert "ALA3 alpha_L" in checks[name].text, name
    assert checks["round trips"].status == "good"
    assert "ALA2" in checks["round trips"].text


def test_basin_that_only_dynamics_finds_is_missed(tmp_path, alanine):
    folder = write_run(tmp_path / "dynamics", alanine, lost=3)
    checks = {check.name: check for check in judge(read_results(folder)).checks}
    assert checks["basins seen by dynamics"].status == "good"
    assert checks["chain and reweighting agree"].status == "good"
    langevin = Chain.load(folder.langevin_file)
    langevin.phi[2000:2100] = 1.0
    langevin.save(folder.langevin_file)
    verdict = judge(read_results(folder))
    checks = {check.name: check for check in verdict.checks}
    assert checks["basins seen by dynamics"].status == "bad"
    assert re.search(
        r"Langevin alone has 2\.00 .* in ALA2 alpha_L; absent here: 0\.00 %", checks["basins seen by dynamics"].text
    )
    assert checks["no basin lost"].status == "bad"
    assert verdict.answer == "do not believe"


def test_residue_with_one_basin_is_not_asked_for_a_way_out_of_it(tmp_path):
    molecule = peptide("ACE-ALA-ALA-NME")
    folder = write_run(tmp_path / "fold", molecule)
    for name, record in (("chain_file", Chain), ("langevin_file", Chain), ("generator_samples_file", GeneratorSamples)):
        one = record.load(getattr(folder, name))
        phi, psi = (np.hstack([angle, np.full_like(angle, -1.0)]) for angle in (one.phi, one.psi))
        replace(one, phi=phi, psi=psi).save(getattr(folder, name))
    assert judge(read_results(folder)).answer == "believe"


@pytest.mark.parametrize("n_states", [1, 2, 3])
def test_chain_of_a_few_states_is_too_short(tmp_path, alanine, n_states):
    folder = write_run(tmp_path / "short", alanine)
    for path in (folder.chain_file, folder.langevin_file):
        chain = Chain.load(path)
        along = {f.name: getattr(chain, f.name)[:n_states] for f in fields(Chain)}
        Chain(**along).save(path)
    write_report(folder.path)
    failed = [check for check in summary(folder)["checks"] if check["status"] == "bad"]
    assert [check["name"] for check in failed] == ["length of the chain"]
    assert f"{n_states} states is too short" in failed[0]["text"]


def test_chain_that_just_began_gives_a_page(tmp_path, alanine):
    folder = write_run(tmp_path / "began", alanine)
    chain = Chain.load(folder.chain_file)
    Chain(**{f.name: getattr(chain, f.name)[:4] for f in fields(Chain)}).save(folder.chain_file)
    write_report(folder.path)
    assert summary(folder)["verdict"] == "do not believe"
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", folder.report_file.read_text(), flags=re.DOTALL)


def test_chain_off_the_support_is_seen_in_the_chain_itself_whatever_the_last_run_counted(tmp_path, alanine):
    folder = write_run(tmp_path / "support", alanine)
    chain = Chain.load(folder.chain_file)
    chain.off_support[1000:9000] = chain.proposed[1000:9000]
    chain.save(folder.chain_file)
    folder.update_phase("sample", n_current_off_support=0)  # by a run that only looked in
    failed = {check.name for check in judge(read_results(folder)).checks if check.status == "bad"}
    assert failed == {"chain on the support"}


def test_chain_of_a_file_without_supports_is_read_as_on_the_support(tmp_path, alanine):
    folder = write_run(tmp_path / "old", alanine)
    with np.load(folder.chain_file) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "off_support"}
    np.savez(folder.chain_file, **arrays)
    chain = Chain.load(folder.chain_file)
    assert chain.off_support.shape == chain.proposed.shape
    assert not chain.off_support.any()
    del arrays["accepted"]
    np.savez(folder.chain_file, **arrays)
    with pytest.raises(ValueError, match="accepted"):
        Chain.load(folder.chain_file)


def test_one_dominating_weight_is_not_believed(tmp_path, alanine):
    folder = write_run(tmp_path / "weight", alanine)
    samples = GeneratorSamples.load(folder.generator_samples_file)
    log_weights = samples.log_weights.copy()
    log_weights[10] += 15.0
    log_weights -= math.log(np.exp(log_weights).sum())
    GeneratorSamples(samples.phi, samples.psi, samples.energy, log_weights).save(folder.generator_samples_file)
    failed = {check.name for check in judge(read_results(folder)).checks if check.status != "good"}
    assert {"importance weights", "largest weight"} <= failed


def test_folder_with_only_a_training_gives_a_page_that_says_what_is_missing(tmp_path, alanine):
    folder = RunFolder.create(tmp_path / "part")
    folder.write_system(alanine)
    folder.training_folder.mkdir()
    write_training(folder, np.random.default_rng(0))
    write_report(folder.path)
    page = folder.report_file.read_text()
    assert "Nothing has been sampled yet" in page
    assert 'id="training"' in page
    assert "the chain of generator moves" in page
    assert summary(folder)["fraction_accepted"] is None
    assert summary(folder)["verdict"] == "nothing to judge"


def test_folder_without_anything_still_gives_a_page(tmp_path):
    folder = RunFolder.create(tmp_path / "empty")
    write_report(folder.path)
    assert len(summary(folder)["missing"]) == 5


def test_other_peptides_show_the_residue_that_was_chosen(tmp_path):
    rng = np.random.default_rng(0)
    folder = RunFolder.create(tmp_path / "two")
    folder.update_settings({"temperature": 310.0, "pair": 1})
    folder.write_system(peptide("ACE-GLY-ALA-NME"))
    chain, other = generator_chain(4000, rng), stuck_chain(4000, rng)
    two = Chain(np.hstack([other.phi, chain.phi]), np.hstack([other.psi, chain.psi]), *chain_rest(chain))
    two.save(folder.chain_file)
    write_report(folder.path)
    assert summary(folder)["residue"] == "ALA3"
    assert summary(folder)["n_round_trips"]["bg_langevin"] > 5
    assert summary(folder)["verdict"] == "believe with care"


def chain_rest(chain: Chain) -> tuple[np.ndarray, ...]:
    return chain.energy, chain.proposed, chain.accepted, chain.off_support, chain.seconds, chain.last_positions


def test_molecule_without_backbone_is_judged_by_its_energies(tmp_path, alanine):
    folder = write_run(tmp_path / "organic", alanine)
    for path, record in ((folder.chain_file, Chain), (folder.langevin_file, Chain)):
        chain = record.load(path)
        nothing = np.empty((len(chain), 0))
        Chain(nothing, nothing, *chain_rest(chain)).save(path)
    samples = GeneratorSamples.load(folder.generator_samples_file)
    nothing = np.empty((len(samples), 0))
    GeneratorSamples(nothing, nothing, samples.energy, samples.log_weights).save(folder.generator_samples_file)
    write_report(folder.path)
    assert summary(folder)["verdict"] == "believe with care"
    assert summary(folder)["phi_positive_population"] == {}
    assert "mean energies agree" in folder.report_file.read_text()
    assert 'id="surfaces"' not in folder.report_file.read_text()


def test_names_from_outside_are_escaped(tmp_path):
    folder = RunFolder.create(tmp_path / "name")
    folder.update_settings({"name": "<script>alert(1)</script>"})
    write_report(folder.path)
    assert "<script>" not in folder.report_file.read_text()


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex.*was not made by openmm-bg"):
        RunFolder.create(tmp_path)
    with pytest.raises(ValueError, match="is not a folder of openmm-bg"):
        RunFolder.open(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        RunFolder.create(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_unwritable_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write to the folder"):
        RunFolder.create(tmp_path / "new")


def test_folder_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write to the folder"):
        RunFolder.create(tmp_path / "file" / "new")


def test_foreign_run_file_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="was not written by openmm-bg"):
        RunFolder.create(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", b"[1, 2"])
def test_damaged_chain_is_named(tmp_path, alanine, damage):
    folder = write_run(tmp_path / "run", alanine)
    folder.chain_file.write_bytes(damage)
    with pytest.raises(ValueError, match=r"cannot read .*chain\.npz"):
        write_report(folder.path)
    assert not folder.report_file.exists()


def test_system_and_topology_survive_the_folder(tmp_path, alanine):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_system(alanine)
    read = folder.read_system()
    assert read.system.getNumConstraints() == alanine.system.getNumConstraints()
    assert [a.name for a in read.topology.atoms()] == [a.name for a in alanine.topology.atoms()]
    assert read.topology.getNumBonds() == alanine.topology.getNumBonds()
    np.testing.assert_allclose(read.positions, alanine.positions, atol=1e-4)


def test_damaged_history_is_named(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.training_folder.mkdir()
    folder.history_file.write_text('{"steps": ')
    with pytest.raises(ValueError, match=r"cannot read .*history\.json"):
        write_report(folder.path)
