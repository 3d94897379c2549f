"""A generator's density as a Force: molecular dynamics on kT0 u_flow = -kT0 log_prob."""

from __future__ import annotations

from typing import Any, Literal

import openmm

from openmm_bg.density import DifferentiableDensity, check_has_density
from openmm_bg.potentials.python_force import python_force
from openmm_bg.potentials.torch_force import torch_force


def flow_force(generator: Any, *, backend: Literal["auto", "python", "torchforce"] = "auto") -> openmm.Force:
    """The energy kT0 u_flow = -kT0 log_prob of a generator as an OpenMM Force, with its exact gradient as forces.

    Dynamics at T0 in a System that has this Force alone, and the masses and constraints of the generator's molecule,
    samples the generator's own distribution: `log_prob` is the density on the measure that OpenMM samples, the Jacobian
    and the metric of the constraints included (docs: theory, "The measure"). The energy is zero where the density is
    1 nm^-(3 n_atoms - 6). It does not depend on the pose.

    Where the density is zero or its gradient is not finite - coincident atoms, an angle of exactly 180 degrees - the
    energy is a plateau of 1e6 kT0 without force. Dynamics does not come there: u_flow grows without bound before. Only
    positions that are not finite numbers have the energy NaN.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Or any `DifferentiableDensity` with an invariant pose. The Force holds a copy: later training does not change
        it. It is evaluated on the generator's device.
    backend : {"auto", "python", "torchforce"}
        "python" is an `openmm.PythonForce`. Its System can be copied and serialised, and so used with openmmtools, but
        the generator has to be saved to a file first. "torchforce" is an `openmmtorch.TorchForce` of the traced
        density, which takes about three quarters of the time. OpenMM (8.6) crashes when it copies or reads back a
        System with a TorchForce: use it in plain OpenMM scripts only. "auto" is "python": a quarter of the time is
        not worth a crash that nobody expects.

    Returns
    -------
    openmm.Force
        For a System with exactly the generator's atoms.

    Raises
    ------
    ValueError
        For a generator without a differentiable, pose-invariant density; with "python", for one that is not in a file.
    ImportError
        With "torchforce", if openmmtorch is missing or is not one for the installed torch.
    """
    density = require_density(generator)
    if backend not in ("auto", "python", "torchforce"):
        raise ValueError(f"backend={backend!r} is unknown; use 'auto', 'python' or 'torchforce'.")
    return torch_force(density) if backend == "torchforce" else python_force(density)


def require_density(generator: Any) -> DifferentiableDensity:
    """The generator, if it has a differentiable density modulo pose.

    Raises
    ------
    ValueError
        If not.
    """
    check_has_density(generator, "A Force")
    if not isinstance(generator, DifferentiableDensity):
        missing = [name for name in ("log_prob", "log_prob_tensor", "temperature") if not hasattr(generator, name)]
        raise ValueError(
            f"A {type(generator).__name__} has no density that a Force could be made from: it lacks "
            f"{', '.join(missing) or 'some of the methods of a DifferentiableDensity'}. Give a BoltzmannGenerator."
        )
    if generator.pose != "invariant":
        raise ValueError(
            f"The density of this {type(generator).__name__} depends on the place and orientation of the molecule; a "
            "Force can be made from one modulo pose only. Give a BoltzmannGenerator."
        )
    return generator
