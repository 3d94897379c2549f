"""Options of `openmm-bg sample`, and what they stand for with a generator and a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace

from openmm_bg.cli.chains import Dynamics
from openmm_bg.cli.defaults import (
    FULL,
    N_PROPOSALS,
    N_STEPS,
    N_WALK_PROPOSALS,
    N_WALK_STEPS,
    WALK_FRICTION,
    WALK_TIMESTEP,
)
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.report.run_folder import RunFolder


@dataclass(frozen=True)
class SampleOptions:
    """What `sample` does.

    Attributes
    ----------
    seconds : float
        Wall time of each of the two chains.
    n_samples : int
        Samples of the generator that are reweighted.
    n_proposals, n_steps : int or None
        Proposals of a scan and Langevin steps between two scans; None for what suits the kernel.
    platform : str
        "auto" or the name of an OpenMM platform.
    seed : int
    kernel : "auto", "independence" or "walk"
        "auto" walks with a generator of reduced coordinates.
    tune : float
        Wall time in which a walk is tuned, after the structure has relaxed.
    timestep, friction : float or None
        Of the dynamics between scans (ps, 1/ps); None for those of the folder, with a walk at most 2 fs and 5/ps.
    """

    seconds: float = FULL.sample
    n_samples: int = FULL.n_samples
    n_proposals: int | None = None
    n_steps: int | None = None
    platform: str = "auto"
    seed: int = 1
    kernel: str = "auto"
    tune: float = FULL.tune
    timestep: float | None = None
    friction: float | None = None

    def resolved(self, generator: BoltzmannGenerator, folder: RunFolder) -> SampleOptions:
        """Return the options with a kernel and numbers in the place of "auto" and None."""
        kernel = self.kernel
        if kernel == "auto":
            kernel = "independence" if generator.latent_labels is None else "walk"
        walks, usual = kernel == "walk", dynamics(folder)
        timestep, friction = usual.timestep, usual.friction
        if walks:
            timestep, friction = min(timestep, WALK_TIMESTEP), WALK_FRICTION
        return replace(
            self,
            kernel=kernel,
            n_proposals=self.n_proposals or (N_WALK_PROPOSALS if walks else N_PROPOSALS),
            n_steps=self.n_steps or (N_WALK_STEPS if walks else N_STEPS),
            timestep=self.timestep or timestep,
            friction=self.friction or friction,
        )

    def dynamics(self, folder: RunFolder) -> Dynamics:
        """Return the dynamics between scans; for resolved options."""
        assert self.timestep is not None
        assert self.friction is not None
        return Dynamics(dynamics(folder).temperature, self.timestep, self.friction)


def dynamics(folder: RunFolder) -> Dynamics:
    """Return the Langevin dynamics that a folder's settings ask for."""
    settings = folder.settings
    return Dynamics(float(settings["temperature"]), float(settings["timestep"]), float(settings["friction"]))
