"""The density of a generator as an `openmm.PythonForce`: OpenMM calls back into Python and torch's autograd."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Literal

import numpy as np
import openmm
import torch
from openmm import unit

from openmm_bg.density import DifferentiableDensity, FloatArray
from openmm_bg.registry import reference, register, resolve

LAMBDA = "lambda_bridge"  # global parameters of a bridged System; here only read, a CustomCVForce declares them
TEMPERATURE = "bridge_temperature"
OFF_SUPPORT = 1e6  # u_flow where the density is zero, in kT
kB = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)

Scale = Literal["temperature", "bridge"]


class FlowEnergy:
    """The function behind a PythonForce: u_flow = -log_prob and its gradient, times an energy.

    It is pickled, and so written to XML, as the content hash and the file of the density, not with its networks: the
    text of a System stays short and the same for every state. The density is a copy, which later training of the
    original leaves alone.

    Parameters
    ----------
    stored : dict
        Where the density is found: its `openmm_bg.registry.reference`. It is looked for at the first evaluation,
        because an error while OpenMM reads XML ends the process.
    scale : {"temperature", "bridge"}
        What u_flow is multiplied with: kT of the density's own temperature, or (1 - lambda) kT with the lambda and the
        temperature that the Context of a bridged System has.
    """

    def __init__(self, stored: dict[str, str | None], scale: Scale) -> None:
        self._stored = stored
        self._scale = scale
        self._last: tuple[FloatArray, float, FloatArray] | None = None

    @cached_property
    def density(self) -> DifferentiableDensity:
        """The density, a copy of its own.

        Raises
        ------
        ValueError
            If it is neither known to this process nor in its file.
        """
        density = resolve(self._stored)
        if not isinstance(density, DifferentiableDensity):
            raise ValueError(f"{self._stored['class']} has no log_prob_tensor, which a Force is made from.")
        return copy.deepcopy(density)

    def __call__(self, state: openmm.State) -> tuple[float, FloatArray]:
        """Energy in kJ/mol, and forces in kJ/mol/nm, of a State with positions and parameters."""
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        if self._scale == "bridge":
            parameters = state.getParameters()
            factor = (1.0 - parameters[LAMBDA]) * kB * parameters[TEMPERATURE]
            if factor == 0.0:  # the target itself costs no pass through the flow
                return 0.0, np.zeros_like(positions)
        else:
            factor = kB * self.density.temperature.value_in_unit(unit.kelvin)
        # replica exchange evaluates one configuration at every lambda in turn
        if self._last is None or not np.array_equal(self._last[0], positions):
            self._last = (positions.copy(), *self._evaluate(positions))
        _, reduced, gradient = self._last
        return factor * reduced, -factor * gradient

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _restore, (self._stored["content_hash"], self._stored["path"], self._stored["class"], self._scale)

    def _evaluate(self, positions: FloatArray) -> tuple[float, FloatArray]:
        """u_flow and its gradient in 1/nm; a plateau without force where one of them is not finite."""
        n_atoms = self.density.n_atoms
        if len(positions) != n_atoms:
            raise ValueError(
                f"The System has {len(positions)} particles, the generator is one of {n_atoms} atoms. Use the System "
                "that the generator was made for."
            )
        device = getattr(self.density, "device", torch.device("cpu"))
        x = torch.tensor(positions, device=device)[None].requires_grad_(True)
        with torch.enable_grad():
            reduced = -self.density.log_prob_tensor(x)[0]
            (gradient,) = torch.autograd.grad(reduced, x)
        if not np.isfinite(positions).all():  # a blown-up integrator, which nobody shall take for a plateau
            return np.nan, np.full_like(positions, np.nan)
        if not (torch.isfinite(reduced) and torch.isfinite(gradient).all()):
            return OFF_SUPPORT, np.zeros_like(positions)
        return reduced.item(), np.asarray(gradient[0].cpu().numpy(), dtype=np.float64)


def python_force(density: DifferentiableDensity, scale: Scale = "temperature") -> openmm.PythonForce:
    """Make a PythonForce of a density; see `FlowEnergy`.

    Raises
    ------
    ValueError
        If the density is not in a file.
    """
    path: str | None = getattr(density, "path", None)
    if path is None:
        raise ValueError(
            "The generator has not been saved to a file since it was made or last trained, and a Force is stored with "
            "its System as the name of that file. Call generator.save(path) first, and leave the file there."
        )
    register(density)
    stored = reference(density)
    energy = _restore(stored["content_hash"], path, stored["class"], scale)
    _ = energy.density  # taken now, before anything trains it further
    force = openmm.PythonForce(energy)
    force.setName("FlowForce")
    return force


_energies: dict[tuple[str | None, str, Scale], FlowEnergy] = {}  # OpenMM unpickles at every copy of a System


def _restore(content_hash: str | None, path: str, density_class: str | None, scale: Scale) -> FlowEnergy:
    """Return the function of a stored Force."""
    key = (content_hash, path, scale)
    if key not in _energies:
        _energies[key] = FlowEnergy({"content_hash": content_hash, "path": path, "class": density_class}, scale)
    return _energies[key]
