"""The fastest OpenMM platform for a System on this machine, by measurement.

OpenMM's own order of preference is wrong for small molecules: 22 atoms run many times slower on the CPU platform with
all its threads than on the Reference platform with one. Rates differ by task, too, so energies and dynamics are
measured apart.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import openmm
from numpy.typing import NDArray

Task = Literal["energies", "dynamics"]

_GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")
_KNOWN_PLATFORMS = (*_GPU_PLATFORMS, "CPU", "Reference")
_LARGEST_FOR_REFERENCE = 2000  # atoms; beyond, one evaluation on the Reference platform can take seconds
_DYNAMICS_TEMPERATURE, _DYNAMICS_FRICTION, _DYNAMICS_TIMESTEP = 300.0, 1.0, 0.001


@dataclass(frozen=True)
class PlatformChoice:
    """A platform with its properties, and why it was chosen.

    Attributes
    ----------
    name : str
        OpenMM's name of the platform.
    properties : dict of str
        Properties to make Contexts with: one thread or all on CPU, mixed precision on a GPU.
    task : {"energies", "dynamics"}
        What was measured: energies with forces, or steps of dynamics.
    rates : dict of float
        What each candidate does per second in all the Contexts asked for; empty if there was only one candidate.
    unavailable : dict of str
        Why a platform that OpenMM has cannot be used here.
    """

    name: str
    properties: dict[str, str]
    task: Task
    rates: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        """Whether the platform runs on a graphics processor."""
        return self.name in _GPU_PLATFORMS

    def create_context(self, system: openmm.System, integrator: openmm.Integrator) -> openmm.Context:
        """Make a Context on this platform."""
        return openmm.Context(system, integrator, openmm.Platform.getPlatformByName(self.name), self.properties)

    def __str__(self) -> str:
        if not self.rates:
            return _label(self.name, self.properties)
        unit = "steps" if self.task == "dynamics" else "energies and forces"
        rates = ", ".join(f"{label} {rate:,.0f}" for label, rate in self.rates.items())
        return f"{_label(self.name, self.properties)} (measured {unit} per second: {rates})"


def available_platforms() -> list[str]:
    """Names of the platforms that OpenMM has loaded on this machine."""
    return [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]


def choose_platform(
    system: openmm.System,
    positions: NDArray[np.float64] | None = None,
    platform: str = "auto",
    *,
    task: Task = "energies",
    n_concurrent: int = 1,
    seconds: float = 0.15,
) -> PlatformChoice:
    """Choose the platform, and its number of threads, by a short measurement.

    Parameters
    ----------
    system : openmm.System
        What is to be computed.
    positions : ndarray, shape (n_atoms, 3), optional
        A sane structure in nm; needed for dynamics. Energies can be timed on atoms scattered over a lattice.
    platform : str
        "auto", or the name of a platform, of which then only the number of threads is measured.
    task : {"energies", "dynamics"}
        Whether to time energies with forces, or steps of Langevin dynamics.
    n_concurrent : int
        Number of Contexts that will run side by side, each on its share of the cores; rates are measured in one Context
        and multiplied, except on a GPU, which they would have to share.
    seconds : float
        Time spent on each candidate; the first evaluation of a large system may take longer.

    Raises
    ------
    ValueError
        If the platform is not one that OpenMM finds here, or positions are lacking for dynamics.
    RuntimeError
        If no Context can be made on the platform asked for.
    """
    if positions is None:
        if task == "dynamics":
            raise ValueError("Timing dynamics needs a structure; give positions in nm, shape (n_atoms, 3).")
        positions = lattice(system.getNumParticles())
    candidates = _candidates(_checked_name(platform), system.getNumParticles(), task, n_concurrent)
    rates: dict[str, float] = {}
    unavailable: dict[str, str] = {}
    usable: dict[str, PlatformChoice] = {}
    for choice in candidates:
        label = _label(choice.name, choice.properties)
        try:
            rate = _measure(choice, system, positions, seconds if len(candidates) > 1 else 0.0)
            rates[label] = rate if choice.is_gpu else rate * n_concurrent
            usable[label] = choice
        except openmm.OpenMMException as error:
            unavailable[choice.name] = str(error)
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unavailable.items())
        raise RuntimeError(
            f"Platform {platform!r} cannot compute this System here ({reasons}). Platforms that OpenMM has loaded: "
            f"{', '.join(available_platforms())}; pass one of them, or 'auto'."
        )
    best = usable[max(rates, key=rates.__getitem__)]
    measured = rates if len(candidates) > 1 else {}
    return PlatformChoice(best.name, best.properties, task, measured, unavailable)


def n_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked_name(platform: str) -> str:
    loaded = available_platforms()
    by_lower = {name.lower(): name for name in ("auto", *loaded)}
    if platform.lower() in by_lower:
        return by_lower[platform.lower()]
    message = f"Unknown platform {platform!r}; expected 'auto' or one that OpenMM has loaded here: {', '.join(loaded)}."
    if platform.lower() in {name.lower() for name in _KNOWN_PLATFORMS}:
        failures = openmm.Platform.getPluginLoadFailures()
        message += (
            " OpenMM has such a platform, but its plugin is not installed or did not load (for CUDA: "
            "pip install 'openmm[cuda12]' and a driver)."
        )
        message += f" OpenMM reports: {'; '.join(failures)}" if failures else ""
    raise ValueError(message)


def _candidates(platform: str, n_atoms: int, task: Task, n_concurrent: int) -> list[PlatformChoice]:
    names = available_platforms() if platform == "auto" else [platform]
    if platform == "auto" and n_atoms > _LARGEST_FOR_REFERENCE and len(names) > 1:
        names.remove("Reference")
    choices = []
    for name in reversed(names):  # the fastest ones are loaded last
        if name in _GPU_PLATFORMS:
            choices.append(PlatformChoice(name, {"Precision": "mixed"}, task))
        elif name == "CPU":
            threads = {1, max(1, n_cores() // n_concurrent)}
            choices += [PlatformChoice(name, {"Threads": str(n)}, task) for n in sorted(threads)]
        else:
            choices.append(PlatformChoice(name, {}, task))
    return choices


def _label(name: str, properties: dict[str, str]) -> str:
    if "Threads" in properties:
        return f"{name} with {properties['Threads']} thread{'s' if properties['Threads'] != '1' else ''}"
    return f"{name} in {properties['Precision']} precision" if "Precision" in properties else name


def _measure(choice: PlatformChoice, system: openmm.System, positions: NDArray[np.float64], seconds: float) -> float:
    """Evaluations or steps per second in one Context; with `seconds` 0 it is only tried once."""
    # No seed: it would reset the one random number generator of the Reference platform, which the caller may be using.
    integrator = (
        openmm.LangevinMiddleIntegrator(_DYNAMICS_TEMPERATURE, _DYNAMICS_FRICTION, _DYNAMICS_TIMESTEP)
        if choice.task == "dynamics"
        else openmm.VerletIntegrator(_DYNAMICS_TIMESTEP)
    )
    context = choice.create_context(system, integrator)
    context.setPositions(positions)

    def work(n: int) -> float:
        begin = time.perf_counter()
        if choice.task == "dynamics":
            integrator.step(n)
            context.getState(getEnergy=True)
        else:
            for _ in range(n):
                context.setPositions(positions)
                context.getState(getEnergy=True, getForces=True)
        return time.perf_counter() - begin

    first = work(1)  # sets up kernels: not counted, unless it already takes all the time there is
    if first >= seconds:
        return 1.0 / first
    done, spent = 0, 0.0
    batch = 5
    while spent < seconds:
        spent += work(batch)
        done += batch
        batch = max(5, min(500, int(0.25 * seconds * done / spent)))
    return done / spent


def lattice(n_atoms: int) -> NDArray[np.float64]:
    """Atoms on a jittered cubic lattice: no two overlap and no angle is straight."""
    side = int(np.ceil(n_atoms ** (1.0 / 3.0)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:n_atoms]
    return np.asarray(0.15 * grid + np.random.default_rng(0).uniform(-0.02, 0.02, size=(n_atoms, 3)))
