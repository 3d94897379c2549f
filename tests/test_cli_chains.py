"""The chain of generator moves as the command line keeps it."""

from __future__ import annotations

import numpy as np
import pytest

from openmm_bg.cli.chains import Dynamics, generator_chain
from openmm_bg.potentials import choose_platform
from openmm_bg.report.records import Chain
from openmm_bg.systems import peptide
from openmm_bg.testing import GaussianDensity


class Elsewhere(GaussianDensity):
    """A density that can propose nothing that there is."""

    def check(self, system, topology=None):
        """Fit any System."""

    def log_prob(self, positions):
        return np.full(len(positions), -np.inf)


@pytest.fixture(scope="module")
def molecule():
    return peptide("ACE-ALA-NME")


@pytest.fixture
def run_chain(molecule, tmp_path):
    """Run or continue a chain with a density, and return its file and its record."""
    density = Elsewhere(molecule.positions, 0.001)
    platform = choose_platform(molecule.system, molecule.positions, "Reference", task="dynamics")
    path = tmp_path / "chain.npz"

    def run(seconds, report=lambda fraction, note: None):
        record = generator_chain(
            molecule, density, Dynamics(300.0), path, seconds=seconds, platform=platform, n_proposals=8, n_steps=5,
            seed=1, report=report,
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
