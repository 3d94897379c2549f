"""What every test shares: one thread a process, and a clear word where OpenMM has no CUDA platform."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENMM_CPU_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import openmm
import pytest

# What a shell runs in the background ignores interrupts, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _cuda_failure() -> str | None:
    """Why OpenMM's CUDA platform does not work here, or None where it does."""
    system = openmm.System()
    system.addParticle(1.0)
    try:
        openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CUDA"))
    except openmm.OpenMMException as error:
        return str(error)
    return None


def _skip_without_torchforce(config: pytest.Config, items: list[pytest.Item]) -> None:
    torchforce_items = [item for item in items if item.get_closest_marker("torchforce")]
    if not torchforce_items:
        return
    from openmm_bg.potentials.torch_force import why_unavailable

    reason = why_unavailable()
    if reason is None:
        return
    if config.getoption("markexpr") == "torchforce":
        pytest.exit(reason, returncode=1)
    for item in torchforce_items:
        item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _skip_without_torchforce(config, items)
    cuda_items = [item for item in items if item.get_closest_marker("cuda")]
    failure = _cuda_failure() if cuda_items else None
    if failure is None:
        return
    if config.getoption("markexpr") == "cuda":  # asked for by name: skipping them all would look like success
        pytest.exit(
            f"OpenMM's CUDA platform does not work here ({failure}). The CUDA tests need an NVIDIA GPU and "
            "pip install 'openmm[cuda12]' (or cuda13).",
            returncode=1,
        )
    for item in cuda_items:
        item.add_marker(pytest.mark.skip(reason=f"OpenMM's CUDA platform does not work here: {failure}"))


@pytest.fixture(scope="session")
def ala2_generator_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a generator for the demo's molecule, untrained: exactness needs no training."""
    from openmm_bg.generator import BoltzmannGenerator
    from openmm_bg.systems import peptide

    molecule = peptide("ACE-ALA-NME")
    generator = BoltzmannGenerator.from_system(
        molecule.system, molecule.topology, 300.0, positions=molecule.positions, seed=0
    )
    path = tmp_path_factory.mktemp("generator") / "ala2.bg"
    generator.save(path)
    return path
