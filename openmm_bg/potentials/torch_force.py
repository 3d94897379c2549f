"""The density of a generator as a `TorchForce`: its traced function, evaluated without Python (openmmtorch)."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import openmm
import torch
from openmm import unit
from packaging.requirements import Requirement
from torch import Tensor, nn

from openmm_bg.density import DifferentiableDensity
from openmm_bg.potentials.python_force import OFF_SUPPORT, kB

MODULE = "openmmtorch"
REMEDY = (
    "Install acellera-openmmtorch-cpu>=1.10 beside torch 2.12 (pip install 'torch==2.12.1' 'openmm-bg[torchforce]'), "
    "or use backend='python', which needs neither."
)
CHECKED = 8  # samples on which the traced function is compared with the original
TOLERANCE = 1e-6  # of u_flow in kT, and of its gradient relative to the largest component


def why_unavailable() -> str | None:
    """Why no TorchForce can be made here, or None: found out without importing openmmtorch.

    A build of openmmtorch is bound to some releases of PyTorch; with another one it is imported without complaint and
    ends the process at the first energy. Its package says which.
    """
    if importlib.util.find_spec(MODULE) is None:
        return f"The module {MODULE} is not installed. {REMEDY}"
    installed = importlib.metadata.version("torch")
    for name in importlib.metadata.packages_distributions().get(MODULE, []):
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.name == "torch" and not requirement.specifier.contains(installed, prereleases=True):
                return (
                    f"{name} {importlib.metadata.version(name)} works with torch{requirement.specifier}, but torch "
                    f"{installed} is installed. {REMEDY}"
                )
    return None


def torch_force(density: DifferentiableDensity) -> openmm.Force:
    """Make a TorchForce of a density, evaluated on the density's device.

    Raises
    ------
    ImportError
        If openmmtorch is missing, does not fit the installed torch, or cannot be loaded.
    RuntimeError
        If the traced function differs from the original.
    """
    reason = why_unavailable()
    if reason is not None:
        raise ImportError(reason)
    try:
        openmmtorch: Any = importlib.import_module(MODULE)
    except (ImportError, OSError) as error:  # a CUDA build without CUDA libraries
        raise ImportError(f"The module {MODULE} cannot be loaded: {error}. {REMEDY}") from error
    force = openmmtorch.TorchForce(traced_force(density))
    force.setOutputsForces(True)
    force.setName("FlowForce")
    return force


def traced_force(density: DifferentiableDensity) -> torch.jit.ScriptModule:
    """TorchScript module of positions in nm, (n_atoms, 3), to energy in kJ/mol and forces in kJ/mol/nm.

    Raises
    ------
    RuntimeError
        If it differs from the density on some of its samples.
    """
    density = copy.deepcopy(density)
    device = getattr(density, "device", torch.device("cpu"))
    for module in vars(density).values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False)  # a trace holds constants
    samples = torch.tensor(density.sample(CHECKED, rng=0).positions, device=device)
    with warnings.catch_warnings():
        # sizes become constants: one configuration at a time
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
        traced = torch.jit.trace(density.log_prob_tensor, (samples[:1],), check_trace=False)
        kT = kB * density.temperature.value_in_unit(unit.kelvin)
        scripted = torch.jit.script(_Force(traced, kT, device))
    _check(scripted, density.log_prob_tensor, samples, kT)
    return scripted


class _Force(nn.Module):
    """Energy and forces from a traced log density; a plateau where one of them is not finite."""

    def __init__(self, log_prob: Callable[[Tensor], Tensor], kT: float, device: torch.device) -> None:
        super().__init__()
        self.log_prob = log_prob
        self.kT = kT
        self.plateau = kT * OFF_SUPPORT
        self.device = device

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        x = positions.detach().to(self.device, torch.float64).unsqueeze(0).requires_grad_(True)
        reduced = -self.log_prob(x)[0]
        gradient = torch.autograd.grad([reduced], [x])[0]
        assert gradient is not None  # for the compiler, which takes a gradient for optional
        finite = torch.isfinite(reduced) & torch.isfinite(gradient).all()
        energy = torch.where(finite, self.kT * reduced.detach(), torch.full_like(reduced, self.plateau))
        forces = torch.where(finite, -self.kT * gradient[0], torch.zeros_like(gradient[0]))
        lost = torch.where(torch.isfinite(positions).all(), 0.0, torch.nan).to(energy)  # a blown-up integrator
        energy, forces = energy + lost, forces + lost
        return energy.to(positions.device), forces.to(positions.device, positions.dtype)


def _check(scripted: torch.jit.ScriptModule, log_prob: Callable[[Tensor], Tensor], samples: Tensor, kT: float) -> None:
    """Compare twice: TorchScript optimises what it has seen run."""
    for sample in samples.repeat(2, 1, 1):
        x = sample[None].requires_grad_(True)
        reduced = -log_prob(x)[0]
        (gradient,) = torch.autograd.grad(reduced, x)
        if not (torch.isfinite(reduced) and torch.isfinite(gradient).all()):
            continue
        energy, forces = scripted(sample)
        difference = (energy / kT - reduced).abs() / (1.0 + reduced.abs())
        largest = (forces / kT + gradient[0]).abs().max() / gradient.abs().max()
        if not (difference < TOLERANCE and largest < TOLERANCE):
            raise RuntimeError(
                f"The traced density differs from the original, by {difference.item():.2g} in u_flow (relative) and "
                f"{largest.item():.2g} in its gradient. Use backend='python' and please report it."
            )
