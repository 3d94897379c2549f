"""Energies and forces of batches in torch: every force of a System as a batched term, checked against OpenMM."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from openmm_bg.potentials.compilation import MOST_ATOMS, CompiledEnergy
from openmm_bg.potentials.platforms import PlatformChoice, lattice
from openmm_bg.potentials.self_check import PRECISIONS, BackendMismatch, Precision, SelfCheck, compare, compare_compiled
from openmm_bg.potentials.torch_terms import Term, UnsupportedForce, build_term

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]

_SECONDS_TO_MEASURE, _MOST_ROWS_TO_MEASURE, _LEAST_GAIN = 0.05, 4096, 1.1
_CPU_ELEMENTS, _CPU_MOST_ELEMENTS = 131_072, 4_194_304  # numbers in the largest array of a chunk: aimed at; at most
_FEWEST_ROWS, _MOST_ROWS = 16, 512  # on a CPU: short rows waste time in memory access, long ones leave the cache
_GPU_SHARE, _BYTES_PER_ELEMENT = 0.25, 128  # of the free memory; of about sixteen arrays alive at once


class TorchBackend:
    """Batched energies and forces of a System, on any device of torch.

    Parameters
    ----------
    system : openmm.System
        One without periodic box and without virtual sites; later changes to it have no effect.
    device : str or torch.device
        Where to compute.
    precision : {"double", "mixed"}
        "mixed" computes pairs of NonbondedForce, GBSAOBCForce and CustomGBForce in single and sums in double precision.
    reference : ndarray, shape (n_atoms, 3), optional
        A structure in nm about which the check against OpenMM is made; by default atoms scattered over a lattice.
    compile : bool
        Compile the forces by torch.compile, which takes seconds to a minute and makes every later evaluation several
        times faster. Where there is no C++ compiler, or it fails, the reason is logged and kept, and nothing else
        changes.

    Attributes
    ----------
    terms : list of Term
        The forces that have energies.
    parameters : dict of str
        Values of the global parameters, at first the defaults; `set_parameters` changes them.
    check : SelfCheck
        How far the result is from OpenMM's Reference platform.
    compile_seconds : float or None
        What the compilation took; None where nothing was compiled.
    not_compiled : str or None
        Why nothing was compiled although that was asked for.

    Raises
    ------
    UnsupportedForce
        If a force, an option of one, or a virtual site has no torch implementation.
    BackendMismatch
        If a force's energies, or the total forces, differ from those of OpenMM's Reference platform.
    """

    def __init__(
        self,
        system: openmm.System,
        device: str | torch.device = "cpu",
        *,
        precision: Precision = "double",
        reference: FloatArray | None = None,
        compile: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"Unknown precision {precision!r}; expected 'double' or 'mixed'.")
        if system.usesPeriodicBoundaryConditions():
            raise UnsupportedForce("The System has periodic boundary conditions; the torch backend knows no box.")
        self.n_atoms: int = system.getNumParticles()
        sites = [i for i in range(self.n_atoms) if system.isVirtualSite(i)]
        if sites:
            raise UnsupportedForce(f"Particle {sites[0]} is a virtual site, which the torch backend does not place.")
        self.device, self.precision = usable_device(device), precision
        made = {i: build_term(force, system) for i, force in enumerate(system.getForces())}
        self._indices = [i for i, term in made.items() if term is not None]
        self.terms: list[Term] = [term.to(self.device) for term in made.values() if term is not None]
        for term in self.terms:
            if precision == "mixed":
                term.pair_dtype = torch.float32
        self.parameters: dict[str, float] = {}
        for term in self.terms:
            self.parameters.update(term.defaults)
        self.choice = PlatformChoice("torch", {"Device": str(self.device), "Precision": precision}, "energies")
        self.n_workers, self.last_error = 1, None
        self._compiled: CompiledEnergy | None = None
        self._compiled_for: dict[str, float] = {}
        self.compile_seconds: float | None = None
        self.not_compiled: str | None = None
        about = lattice(self.n_atoms) if reference is None else np.asarray(reference, dtype=np.float64)
        self.check: SelfCheck = self._compared(system, about)
        if self.parameters:
            self._check_other_parameters(system, about)
        if compile:
            self._compile(about)
            self.check = self._compared(system, about)

    def set_parameters(self, values: Mapping[str, float]) -> None:
        """Set global parameters of the forces.

        Raises
        ------
        ValueError
            If no force has a parameter of that name.
        """
        for name, value in values.items():
            if name not in self.parameters:
                known = ", ".join(sorted(self.parameters)) or "none"
                raise ValueError(f"No force has a global parameter {name!r}; the System has: {known}.")
            self.parameters[name] = float(value)

    def evaluate(self, positions: FloatArray, *, with_forces: bool) -> tuple[FloatArray, FloatArray | None]:
        """Energies (n,) in kJ/mol and forces (n, n_atoms, 3) in kJ/mol/nm of finite `positions` in nm.

        Where the result is not finite, the energy is +inf and the forces are zero.
        """
        energies, gradients = self.energies_and_gradients(torch.from_numpy(positions), with_gradients=with_forces)
        return energies.cpu().numpy(), None if gradients is None else -gradients.cpu().numpy()

    def energies_and_gradients(
        self, positions: torch.Tensor, *, with_gradients: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Energies (n,) and gradients (n, n_atoms, 3) of a float64 tensor (n, n_atoms, 3) in nm, chunk by chunk.

        Both are on the device that the positions are on. Where an energy or a gradient is not finite, the energy is
        +inf and the gradient zero.

        Raises
        ------
        MemoryError
            If the memory does not suffice for a single configuration.
        """
        if self._compiled is not None and self.parameters == self._compiled_for:
            x = positions.detach().to(self.device)
            return self._repaired(*self._compiled(x, with_gradients=with_gradients), positions.device)
        energies = torch.empty(len(positions), dtype=torch.float64, device=positions.device)
        gradients = torch.empty_like(positions) if with_gradients else None
        rows, start = self._rows_at_once(), 0
        while start < len(positions):
            chunk = slice(start, start + rows)
            try:
                energy, gradient = self._chunk(positions[chunk], with_gradients)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                rows = self._fewer_rows(min(rows, len(positions) - start), error)
                continue
            energies[chunk] = energy
            if gradients is not None and gradient is not None:
                gradients[chunk] = gradient
            start += rows
        return energies, gradients

    def term_energies(self, positions: torch.Tensor) -> torch.Tensor:
        """Energies (n_terms, n) of each force by itself, differentiable, of positions (n, n_atoms, 3)."""
        positions = positions.to(self.device)
        return torch.stack([term(positions, self.parameters) for term in self.terms])

    @property
    def about_compilation(self) -> str:
        """What came of the compilation, to be put after a description; empty if it was not asked for."""
        if self.not_compiled is not None:
            return f"; not compiled: {self.not_compiled}"
        return "" if self.compile_seconds is None else f"; compiled in {self.compile_seconds:.0f} s"

    def close(self) -> None:
        """Free the terms; the backend cannot be used afterwards."""
        self.terms.clear()
        self._compiled = None

    def _chunk(self, positions: torch.Tensor, with_gradients: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = positions.detach().to(self.device).permute(2, 1, 0).contiguous()  # the layout that the terms work in
        x.requires_grad_(with_gradients)
        energy = x.new_zeros(x.shape[-1])
        gradient = torch.zeros_like(x)
        with torch.set_grad_enabled(with_gradients):
            for term in self.terms:
                part = term(x.permute(2, 1, 0), self.parameters)
                energy += part.detach()
                if with_gradients and part.requires_grad:
                    gradient += torch.autograd.grad(part.sum(), x)[0]
        return self._repaired(energy, gradient.permute(2, 1, 0) if with_gradients else None, positions.device)

    @staticmethod
    def _repaired(
        energy: torch.Tensor, gradient: torch.Tensor | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same on a device, with +inf and zero where something is not finite."""
        failed = ~torch.isfinite(energy)
        if gradient is not None:
            failed |= ~torch.isfinite(gradient).flatten(1).all(1)
            gradient = gradient.masked_fill(failed[:, None, None], 0.0).to(device)
        return energy.masked_fill(failed, torch.inf).to(device), gradient

    def _compile(self, structure: FloatArray) -> None:
        """Compile the terms at the present parameters; where that fails, say why and go on without."""
        self.not_compiled = f"only Systems of up to {MOST_ATOMS} atoms are" if self.n_atoms > MOST_ATOMS else None
        if self.not_compiled is None and self.terms:
            try:
                positions = torch.from_numpy(structure).to(self.device)
                self._compiled = CompiledEnergy(self.terms, self.parameters, positions)
            except RuntimeError as error:  # what torch raises where there is no compiler, or it stumbles
                self.not_compiled = str(error).strip().splitlines()[0]
        if self._compiled is None:
            logger.warning("Energies are not compiled: %s", self.not_compiled or "there are no forces")
            return
        self._compiled_for = dict(self.parameters)
        self.compile_seconds = self._compiled.seconds
        logger.info("Energies of %d atoms were compiled in %.1f s", self.n_atoms, self.compile_seconds)

    def _rows_at_once(self) -> int:
        largest = max((term.elements for term in self.terms), default=1)
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
            return max(1, int(_GPU_SHARE * free / (_BYTES_PER_ELEMENT * largest)))
        in_cache = _CPU_ELEMENTS * torch.get_num_threads() // largest
        return max(1, min(_MOST_ROWS, max(in_cache, min(_FEWEST_ROWS, _CPU_MOST_ELEMENTS // largest))))

    def _fewer_rows(self, rows: int, error: RuntimeError) -> int:
        if rows == 1:
            raise MemoryError(
                f"The memory of {self.device} does not suffice for one configuration of {self.n_atoms} atoms "
                f"({error}). Free memory, or use backend='openmm'."
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return rows // 2

    def _compared(self, system: openmm.System, about: FloatArray) -> SelfCheck:
        """What the comparison with OpenMM about a structure finds."""
        check = compare(self, system, self._indices, about)
        if self._compiled is not None:
            compare_compiled(self, about)
        return check

    def _check_other_parameters(self, system: openmm.System, about: FloatArray) -> None:
        """Compare with every global parameter away from its default, inside [0, 1] where the default is there."""
        defaults = dict(self.parameters)
        self.parameters = {
            name: 0.25 + 0.5 * value if 0.0 <= value <= 1.0 else 1.05 * value for name, value in defaults.items()
        }
        try:
            compare(self, system, self._indices, about, may_be_infinite=True)
        finally:
            self.parameters = defaults


class EnergyBackend(Protocol):
    """What computes energies and forces of arrays."""

    def evaluate(self, positions: FloatArray, *, with_forces: bool) -> tuple[FloatArray, FloatArray | None]:
        """Energies in kJ/mol and forces in kJ/mol/nm of positions in nm."""


def faster_torch_backend(
    system: openmm.System,
    other: EnergyBackend,
    device: str | torch.device,
    *,
    precision: Precision = "double",
    reference: FloatArray | None = None,
    compile: bool = False,
) -> tuple[TorchBackend | None, str]:
    """A torch backend if it knows all forces, agrees with OpenMM and is faster than `other`; and the reason, as text.

    Both compute energies and forces of the same batch, in turn, and their best times count.
    """
    try:
        backend = TorchBackend(system, device, precision=precision, reference=reference, compile=compile)
    except (UnsupportedForce, BackendMismatch) as error:
        return None, f"openmm, because torch cannot: {error}"
    batch = np.repeat(lattice(backend.n_atoms)[None], _FEWEST_ROWS, axis=0)
    slowest = max(_seconds(backend, batch), _seconds(other, batch)) / len(batch)
    n_rows = int(np.clip(_SECONDS_TO_MEASURE / slowest, _FEWEST_ROWS, _MOST_ROWS_TO_MEASURE))
    batch = np.repeat(batch[:1], n_rows, axis=0)
    ours, theirs = (min(_seconds(each, batch) for _ in range(3)) / n_rows for each in (backend, other))
    rates = f"torch {1.0 / ours:,.0f}, openmm {1.0 / theirs:,.0f} energies and forces per second"
    rates += backend.about_compilation
    if ours * _LEAST_GAIN < theirs:
        return backend, f"torch, measured: {rates}"
    backend.close()
    return None, f"openmm, measured: {rates}"


def _seconds(backend: EnergyBackend, batch: FloatArray) -> float:
    begin = time.perf_counter()
    backend.evaluate(batch, with_forces=True)
    return time.perf_counter() - begin


def usable_device(device: str | torch.device) -> torch.device:
    """The device, if there is one and it has double precision.

    Raises
    ------
    ValueError
        If the name is no device, or the device is not there.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {device!r}; expected 'cpu', 'cuda' or 'cuda:<index>'.") from error
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise ValueError(f"The device {device!r} is not supported; expected 'cpu', 'cuda' or 'cuda:<index>'.")
    count = torch.cuda.device_count()
    if (found.index or 0) >= count:
        raise ValueError(f"The device {device!r} was asked for, and torch sees {count} CUDA devices. Use 'cpu'.")
    return found


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
