"""The chain of generator moves as the command line keeps it."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest

from openmm_bg.cli.chains import Dynamics, generator_chain
from openmm_bg.moves import Independence
from openmm_bg.potentials import choose_platform
from openmm_bg.report.records import Chain
from openmm_bg.systems import peptide
from openmm_bg.testing import GaussianDensity


class Near(GaussianDensity):
    """A density that fits any System."""

    def check(self, system, topology=None):
        pass


class Elsewhere(Near):
    """A density that can propose nothing that there is."""

    def log_prob(self, positions):
        return np.full(len(positions), -np.inf)


@pytest.fixture(scope="module")
def molecule():
    return peptide("ACE-ALA-NME")


@pytest.fixture
def run_chain(molecule, tmp_path):
    """Run or continue a chain with a density, and return its file and its record."""
    platform = choose_platform(molecule.system, molecule.positions, "Reference", task="dynamics")
    path = tmp_path / "chain.npz"

    def run(seconds, report=lambda fraction, note: None, density=Elsewhere, seed=1):
        record = generator_chain(
            molecule, density(molecule.positions, 0.001), Dynamics(300.0), path, seconds=seconds, platform=platform,
            kernel=Independence(n_proposals=8), n_steps=5, seed=seed, report=report,
        )  # fmt: skip
        return path, record

    return run


def test_time_off_the_support_survives_an_interruption_and_a_run_that_adds_nothing(run_chain, tmp_path) -> None:
    def stop(fraction, note):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_chain(60.0, stop)
    interrupted = Chain.load(tmp_path / "chain.npz")
    assert interrupted.proposed.any()
    np.testing.assert_array_equal(interrupted.off_support, interrupted.proposed)
    _, record = run_chain(0.001)
    assert record["n_current_off_support"] == record["n_proposed"] == interrupted.proposed.sum()


def test_a_seed_gives_the_same_chain_as_far_as_both_go(run_chain, tmp_path, monkeypatch) -> None:
    chains = []
    for seed in (1, 1, 2):
        # Moves of one process that share a seed are given different streams; a command makes one.
        monkeypatch.setattr("openmm_bg.moves.move._streams", defaultdict(itertools.count))
        path, _ = run_chain(1.0, density=Near, seed=seed)
        chains.append(Chain.load(path))
        path.unlink()
    n = min(len(chain) for chain in chains)
    assert n > 100
    np.testing.assert_array_equal(chains[0].energy[:n], chains[1].energy[:n])
    assert not np.array_equal(chains[0].energy[:n], chains[2].energy[:n])
