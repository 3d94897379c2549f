"""BoltzmannGenerator: coordinates, flow and base density of one molecule as one normalised density."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import openmm
import openmm.app
import torch
from openmm import unit
from torch import Tensor

from openmm_bg import model_file
from openmm_bg.base import Base
from openmm_bg.coordinates import ConstraintMetric, InternalCoordinates, build_zmatrix, find_constraints
from openmm_bg.coordinates.features import Features
from openmm_bg.coordinates.reference import reference_internal
from openmm_bg.coordinates.rotamers import Rotamers, find_rotamers
from openmm_bg.coordinates.rotatable import rotatable_torsions
from openmm_bg.density import FloatArray, LatentLabels, Samples, check_has_density
from openmm_bg.flows import FlowConfig, FlowWithFrozen, SplineFlow, SplitConfig, SplitFlow, default_config
from openmm_bg.given import GivenFrozen
from openmm_bg.molecule import Molecule
from openmm_bg.reduction import Frozen, Reduction, feature_layout

if TYPE_CHECKING:
    from openmm_bg.training.history import TrainingHistory

CHUNK = 4096  # configurations that pass through the flow at once
CHECKED = 1024  # samples on which forward and inverse pass are compared
CONSISTENT = 0.01  # largest difference of their log densities


class BoltzmannGenerator:
    """A normalizing flow over the internal coordinates of one molecule; a `LatentDensity`.

    Make one with `from_system` or `load`, then `fit` it to a trajectory or `openmm_bg.train` it.

    Attributes
    ----------
    n_atoms, n_dof : int
        Number of atoms; number of latents (3 n_atoms - 6 less the constraints).
    pose : "invariant"
        `log_prob` is a density modulo translation and rotation.
    """

    pose: Literal["invariant"] = "invariant"

    def __init__(
        self,
        molecule: Molecule,
        rotatable: list[int],
        config: FlowConfig | SplitConfig,
        temperature: float,
        seed: int,
        reduction: Reduction | None = None,
    ) -> None:
        self.molecule = molecule
        self._hashed: tuple[list[tuple[int, int]], str] | None = None
        self._saved: tuple[str, str] | None = None
        self._soundness: tuple[str, bool] | None = None
        self._temperature = temperature
        self._seed = seed
        self._rotatable = rotatable
        self.config = config
        self.reduction = reduction
        topology = molecule.topology()
        zmatrix = build_zmatrix(topology)
        constraints = find_constraints(molecule.constraints_system(), zmatrix, topology)
        is_rotatable = np.isin(np.arange(len(zmatrix.atoms)), rotatable)
        self.coordinates = InternalCoordinates(zmatrix)
        self.features = Features(zmatrix, constraints, is_rotatable)
        self.metric = ConstraintMetric(constraints.pairs, molecule.masses)
        self._log_constraint_jacobian = constraints.log_jacobian
        layout = feature_layout(self.features, zmatrix, topology, is_rotatable, reduction, config)
        generated = (
            SplineFlow(layout.generated(), config, seed)
            if isinstance(config, FlowConfig)
            else SplitFlow(layout.generated(), config, seed)
        )
        self.flow = FlowWithFrozen(generated, layout) if layout.frozen_linear else generated
        if config.temperature_range is not None:
            self.flow.set_temperature(temperature)
        if self.n_dof == 0:
            raise ValueError("Constraints fix every internal coordinate of the molecule; nothing is left to generate.")

    @classmethod
    def from_system(
        cls,
        system: openmm.System,
        topology: openmm.app.Topology,
        temperature: unit.Quantity | float,
        *,
        coordinates: Literal["full", "reduced"] = "full",
        frozen: Frozen = "thermal",
        bond_lengths: bool = False,
        flow: Literal["spline", "split"] | FlowConfig | SplitConfig = "spline",
        positions: unit.Quantity | FloatArray | None = None,
        temperature_range: tuple[unit.Quantity | float, unit.Quantity | float] | None = None,
        seed: int | None = None,
    ) -> Self:
        """Build an untrained generator.

        Parameters
        ----------
        system : openmm.System
            One connected molecule; its masses and constraints enter the density.
        topology : openmm.app.Topology
            With all bonds.
        temperature : Quantity or float (K)
            The temperature the generator is meant for; moves use each thermodynamic state's own.
        coordinates : "full" or "reduced"
            "full": every internal coordinate that no constraint fixes is generated. "reduced", for proteins: torsions
            and angles of the backbone and rotatable torsions of the side chains are, the others are frozen.
        frozen : "thermal", "keep" or "mean"
            What becomes of frozen coordinates. "thermal": they are drawn from a fixed density, learned from the data's
            mean and covariance in each residue; the generator has a full density. "keep": a move leaves them as they
            are, exactly; the generator has no density of its own. "mean": pictures only.
        bond_lengths : bool
            With "reduced": generate lengths of backbone bonds too.
        flow : "spline", "split", FlowConfig or SplitConfig
            "spline" chooses the sizes from the number of degrees of freedom. "split", for proteins: a channel for the
            backbone and one for the side chains given it, with gated attention over residues.
        positions : Quantity or array, shape (n_atoms, 3), nm, optional
            A reference structure. It centres the untrained density and fixes its chirality, and is where molecular
            dynamics starts when `train` makes its own data.
        temperature_range : tuple of two of {Quantity, float (K)}, optional
            Makes the density depend on the temperature, to be trained between these two: see `at`.
        seed : int, optional
            Seed of the initial weights.

        Raises
        ------
        ValueError
            For an unknown option, residues that are not those of a protein with "reduced", more than one molecule,
            virtual sites, atoms without mass, constraints whose Jacobian is not constant,
            a temperature that is not positive, or positions of another shape.
        """
        if coordinates not in ("full", "reduced"):
            raise ValueError(f"coordinates={coordinates!r} is unknown; use 'full' or 'reduced'.")
        reduction = Reduction(frozen, bond_lengths)
        if coordinates == "full" and reduction != Reduction():
            raise ValueError(
                "frozen and bond_lengths are options of coordinates='reduced'; a full generator has neither."
            )
        kelvin = _in_kelvin(temperature)
        molecule = Molecule.from_openmm(system, topology)
        zmatrix = build_zmatrix(topology)
        rotatable = np.flatnonzero(rotatable_torsions(zmatrix, system, topology)).tolist()
        if flow == "spline":
            config: FlowConfig | SplitConfig = default_config(3 * molecule.n_atoms - 6 - len(molecule.constraints))
        elif flow == "split":
            config = SplitConfig()
        elif isinstance(flow, FlowConfig | SplitConfig):
            config = flow
        else:
            raise ValueError(f"flow={flow!r} is unknown; use 'spline', 'split', a FlowConfig or a SplitConfig.")
        if temperature_range is not None:
            low, high = temperature_range
            config = replace(config, temperature_range=(_in_kelvin(low), _in_kelvin(high)))
        generator = cls(
            molecule,
            rotatable,
            config,
            kelvin,
            0 if seed is None else seed,
            None if coordinates == "full" else reduction,
        )
        if positions is None:
            internal = reference_internal(zmatrix, system)
        else:
            reference = molecule.check_positions(positions)
            generator.molecule = molecule.with_reference(reference[0])
            internal = generator.coordinates.to_internal(torch.tensor(reference[:1]))
        generator.features.set_reference(internal, (0.03, 0.06, 0.05))
        return generator

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.molecule.n_atoms

    @property
    def n_dof(self) -> int:
        """Number of latents, those of frozen coordinates included."""
        return self.features.n_circular + self.features.n_linear

    @property
    def n_generated(self) -> int:
        """Number of generated coordinates: the first latents; with reduced coordinates the others are frozen."""
        return self.n_dof - (self.flow.n_frozen if isinstance(self.flow, FlowWithFrozen) else 0)

    @property
    def base(self) -> Base:
        """Density of the latents."""
        return self.flow.base

    @property
    def latent_labels(self) -> LatentLabels | None:
        """What the latents of reduced coordinates belong to; None for full ones, whose latents move everything."""
        if self.reduction is None:
            return None
        places = self.flow.latent_places
        kinds = ["side_chain" if place.side_chain else "backbone" for place in places]
        kinds[self.n_generated :] = ["frozen"] * (self.n_dof - self.n_generated)
        return LatentLabels(np.array([place.residue for place in places], dtype=np.int64), np.array(kinds))

    @cached_property
    def rotamers(self) -> Rotamers | None:
        """The bonds about which side chains of reduced coordinates turn to other rotamers; None for full ones."""
        labels = self.latent_labels
        if labels is None:
            return None
        bonds = self.coordinates.zmatrix.references[self.features.circular_rows, :2]
        of_side_chains = np.flatnonzero(labels.kind[: len(bonds)] == "side_chain")
        outward = bonds[of_side_chains, ::-1]
        constrained = [(i, j) for i, j, _ in self.molecule.constraints]
        return find_rotamers(self.topology, outward, labels.residue[of_side_chains], constrained)

    @property
    def keeps_frozen(self) -> bool:
        """Whether a move has to hold the frozen coordinates: see `given`."""
        return self.reduction is not None and self.reduction.frozen == "keep"

    @property
    def why_no_density(self) -> str | None:
        """Why the generator has no density of its own; None if it has one."""
        return None if self.reduction is None else self.reduction.why_no_density()

    @property
    def temperature(self) -> unit.Quantity:
        """The temperature that the generator is meant for."""
        return self._temperature * unit.kelvin

    @property
    def temperature_range(self) -> tuple[unit.Quantity, unit.Quantity] | None:
        """The temperatures between which a temperature-conditioned generator is trained; None for any other."""
        if self.config.temperature_range is None:
            return None
        low, high = self.config.temperature_range
        return low * unit.kelvin, high * unit.kelvin

    def at(self, temperature: unit.Quantity | float) -> Self:
        """The density of a temperature-conditioned generator at a temperature, sharing its weights.

        A `BoltzmannGeneratorMove` with a conditioned generator does this for the temperature of each state. The
        density is normalised, and the move exact, at every temperature, also where the generator was not trained.

        Parameters
        ----------
        temperature : Quantity or float (K)

        Raises
        ------
        ValueError
            If the generator was not made with a `temperature_range`, or the temperature is not positive.
        """
        if self.config.temperature_range is None:
            raise ValueError(
                "The generator has one density for all temperatures. Make one that depends on the temperature with "
                "from_system(..., temperature_range=(300.0, 500.0)) and train it."
            )
        _ = self.rotamers  # found once, for all temperatures
        view = copy.copy(self)
        view._temperature = _in_kelvin(temperature)
        view.flow = copy.copy(self.flow)
        view.flow.set_temperature(view._temperature)
        view._hashed = view._saved = view._soundness = None
        return view

    @property
    def topology(self) -> openmm.app.Topology:
        """The Topology of the molecule."""
        return self.molecule.topology()

    @property
    def content_hash(self) -> str:
        """Digest of molecule, configuration and weights; it changes with training."""
        versions = [(tensor.data_ptr(), tensor._version) for tensor in self._tensors().values()]
        if self._hashed is None or self._hashed[0] != versions:
            found = model_file.content_hash("BoltzmannGenerator", self._description(), self._tensors())
            self._hashed = (versions, found)
        return self._hashed[1]

    @property
    def path(self) -> str | None:
        """The file that holds the generator as it is now, None if it was not saved since it last changed."""
        if self._saved is None or self._saved[0] != self.content_hash:
            return None
        return self._saved[1]

    @property
    def device(self) -> torch.device:
        """Where flow and coordinates are evaluated."""
        return self.features.mean.device

    def to(self, device: str | torch.device) -> Self:
        """Move flow and coordinates to a device ("cpu", "cuda", "cuda:1"); returns the generator."""
        for module in (self.coordinates, self.features, self.metric, self.flow):
            module.to(device)
        return self

    def given(self, positions: unit.Quantity | FloatArray) -> GivenFrozen:
        """The density of the generated coordinates given the frozen ones of a configuration.

        A move with a `frozen="keep"` generator proposes from it.

        Parameters
        ----------
        positions : Quantity or array, shape (n_atoms, 3), nm

        Raises
        ------
        ValueError
            If nothing is frozen, or for another shape or positions that are not finite.
        """
        if self.n_generated == self.n_dof:
            raise ValueError("The generator has no frozen coordinates that could be given: use it as it is.")
        return GivenFrozen(self, self.molecule.check_positions(positions)[0])

    def sample(
        self,
        n: int,
        *,
        rng: np.random.Generator | int | None = None,
        frozen_from: unit.Quantity | FloatArray | None = None,
    ) -> Samples:
        """Draw independent configurations.

        Parameters
        ----------
        n : int
        rng : numpy Generator or seed, optional
        frozen_from : Quantity or array, shape (n_atoms, 3), nm, optional
            With reduced coordinates: draw the generated ones only, and take the frozen ones of this configuration. The
            log density is then one up to a constant.

        Returns
        -------
        Samples
            Positions, and the log density that they were drawn with; NaN with `frozen="mean"`, which has none.

        Raises
        ------
        ValueError
            With `frozen="keep"`, without `frozen_from`.
        """
        if frozen_from is not None:
            return self.given(frozen_from).sample(n, rng=rng)
        if self.keeps_frozen:
            check_has_density(self, "sample()")
        seed = int(np.random.default_rng(rng).integers(2**63 - 1))
        latent = self.flow.sample_base(n, torch.Generator().manual_seed(seed)).cpu().numpy().astype(np.float64)
        if self.why_no_density is None:
            return Samples(*self._decoded(latent))
        latent[:, self.n_generated :] = 0.0
        return Samples(self._decoded(latent)[0], np.full(n, np.nan))

    def log_prob(self, positions: unit.Quantity | FloatArray) -> FloatArray:
        """Log density on the measure that OpenMM samples, modulo pose, shape (n, n_atoms, 3) nm to (n,).

        log p(q) - log J(q) - 1/2 ln det Z(q), and with constrained angles + ln abs det(d sigma / d e) (docs: theory,
        "The measure"), in units of nm^-(3 n_atoms - 6). It is
        -inf off the support: at degenerate or non-finite coordinates.

        Raises
        ------
        ValueError
            For another shape, or a generator that has no density of its own.
        """
        return self._in_chunks(positions, self.log_prob_tensor)

    def log_prob_tensor(self, positions: Tensor) -> Tensor:
        """`log_prob` as a differentiable function of a tensor, shape (n, n_atoms, 3) nm to (n,).

        Its gradient is finite wherever `log_prob` is; a configuration off the support has -inf and a NaN gradient, and
        spoils no other configuration of the batch.

        Parameters
        ----------
        positions : Tensor, float64, on the generator's `device`

        Raises
        ------
        ValueError
            For another shape, precision or device, or a generator that has no density of its own.
        """
        check_has_density(self, "log_prob")
        if positions.ndim != 3 or positions.shape[1:] != (self.n_atoms, 3):
            raise ValueError(f"Positions have shape {tuple(positions.shape)}; expected (n, {self.n_atoms}, 3) in nm.")
        if positions.dtype != torch.float64 or positions.device != self.device:
            raise ValueError(
                f"Positions are {positions.dtype} on {positions.device}; expected torch.float64 on {self.device}, "
                "where the generator is."
            )
        return self._encode(positions)[1]

    @property
    def is_consistent(self) -> bool:
        """Whether forward and inverse pass agree on the density of the flow's own samples.

        They do unless the flow is bent so strongly that rounding decides where a sample goes: then samples do not
        follow `log_prob`, and `check` refuses the generator. Found out once for each set of weights.
        """
        content = self.content_hash
        if self._soundness is None or self._soundness[0] != content:
            latent = self.flow.sample_base(CHECKED, torch.Generator().manual_seed(0)).double()
            with torch.no_grad():
                positions, forward = self._decode(latent.to(self.device))
                difference = (forward - self._encode(positions)[1]).abs()
            self._soundness = (content, not bool((difference > CONSISTENT).any()))
        return self._soundness[1]

    def to_latent(self, positions: unit.Quantity | FloatArray) -> FloatArray:
        """Latents of configurations, shape (n, n_atoms, 3) nm to (n, n_dof): circles first, in [-pi, pi)."""
        check_has_density(self, "to_latent")
        return self._in_chunks(positions, lambda x: self._encode(x)[0].double())

    def encode(self, positions: unit.Quantity | FloatArray) -> tuple[FloatArray, FloatArray]:
        """`to_latent` and `log_prob` of configurations, shape (n, n_atoms, 3) nm, by one inverse pass."""
        check_has_density(self, "encode")
        return self._encoded(positions)

    def from_latent(self, latents: FloatArray) -> FloatArray:
        """Configurations of latents, shape (n, n_dof) to (n, n_atoms, 3) nm; NaN where arithmetic overflows.

        Latents on circles may be in any period.
        """
        check_has_density(self, "from_latent")
        return self._decoded(latents)[0]

    @property
    def n_circles(self) -> int:
        """Number of latents that are angles: the first ones of `to_latent`."""
        return self.features.n_circular

    def from_latent_tensor(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and log density of latents as differentiable functions of a tensor.

        Parameters
        ----------
        latents : Tensor, shape (n, n_dof), float64, on the generator's `device`
            Circles in [-pi, pi).

        Returns
        -------
        positions : Tensor, shape (n, n_atoms, 3), nm
        log_prob : Tensor, shape (n,)
            As `log_prob` of the positions, by the forward pass.
        """
        check_has_density(self, "from_latent_tensor")
        return self._decode(latents)

    def check(self, system: openmm.System, topology: openmm.app.Topology | None = None) -> None:
        """Raise ValueError, saying why, unless the generator can be used for this System and Topology.

        It has to be made for them, and its forward and inverse pass have to agree.
        """
        self.molecule.check(system, topology)
        if not self.is_consistent:
            raise ValueError(
                "Forward and inverse pass of the generator give its own samples different densities: its splines are "
                "bent so strongly that rounding decides where a sample goes, and no weight or acceptance would be "
                "right. Train it anew with a lower learning rate or on more data."
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write one file of tensors and plain data; an existing file is replaced as a whole or not at all."""
        model_file.write(path, "BoltzmannGenerator", self._description(), self._tensors())
        self._saved = (self.content_hash, str(Path(path).absolute()))

    @classmethod
    def load(cls, path: str | PathLike[str], *, system: openmm.System | None = None) -> Self:
        """Read a generator; with `system` also check that it was made for it.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file; if it is truncated, changed or foreign; if the System is another.
        """
        description, tensors, found = model_file.read(path, "BoltzmannGenerator")
        generator = cls(
            Molecule.from_dict(description["molecule"]),
            description["rotatable"],
            _config_from(description["flow"]),
            description["temperature"],
            description["seed"],
            Reduction(**description["reduction"]) if "reduction" in description else None,
        )
        generator._load_tensors(tensors)
        generator._saved = (found, str(Path(path).absolute()))
        if system is not None:
            generator.check(system)
        return generator

    def fit(
        self,
        trajectory: Any,
        *,
        weights: FloatArray | None = None,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        validation_fraction: float = 0.1,
        rotamer_jumps: float = 0.0,
        folder: str | PathLike[str] | None = None,
        progress: bool = True,
    ) -> TrainingHistory:
        """Fit the density to a trajectory by maximum likelihood, with early stopping on held-out blocks of time.

        See `openmm_bg.training.fit`, which this calls.
        """
        from openmm_bg.training import fit

        return fit(
            self,
            trajectory,
            weights=weights,
            max_steps=max_steps,
            max_seconds=max_seconds,
            validation_fraction=validation_fraction,
            rotamer_jumps=rotamer_jumps,
            folder=folder,
            progress=progress,
        )

    @contextmanager
    def _held_at(self, temperature: float) -> Iterator[None]:
        """Let a temperature-conditioned generator be that of another temperature (K) for a while; others stay."""
        if self.config.temperature_range is None:
            yield
            return
        self.flow.set_temperature(temperature)
        try:
            yield
        finally:
            self.flow.set_temperature(self._temperature)

    def _decoded(self, latents: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Positions and their log densities by the forward pass, in chunks."""
        array = np.array(latents, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] != self.n_dof:
            raise ValueError(f"Latents have shape {array.shape}; expected (n, {self.n_dof}).")
        circles = array[:, : self.features.n_circular]
        circles[...] = np.remainder(circles + np.pi, 2.0 * np.pi) - np.pi
        with torch.no_grad():
            parts = [self._decode(part.to(self.device)) for part in torch.tensor(array).split(CHUNK)]
        positions, log_prob = (torch.cat(values).cpu().numpy() for values in zip(*parts, strict=True))
        return positions, np.where(np.isfinite(log_prob), log_prob, -np.inf)

    def _decode(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and log density on the sampled measure of latents, differentiable in the flow's parameters."""
        circular, linear, log_det = self.flow(latent)
        log_prob = self.flow.base_log_prob(latent) - log_det.double()
        internal, log_det = self.features.decode(circular.double(), linear.double())
        positions = self.coordinates.to_cartesian(internal)
        log_prob = log_prob - log_det - self.coordinates.log_jacobian(internal) - self.metric(positions)
        return positions, log_prob + self._log_constraint_jacobian

    def _decode_given(self, circular: Tensor, rng: torch.Generator, rows: slice | None = None) -> Tensor:
        """Positions with given torsions, everything else drawn from the flow; of some rows only, if asked for."""
        rows = slice(None) if rows is None else rows
        latent = self.flow.sample_base(len(circular), rng)[rows, self.features.n_circular :]
        circular = circular[rows]
        linear = self.flow.linear_given(circular, latent)
        return self.coordinates.to_cartesian(self.features.decode(circular.double(), linear.double())[0])

    def _path_log_prob(self, positions: Tensor) -> Tensor:
        """Log density of positions as a function of the positions alone, the flow's parameters held fixed.

        With it E_p[log p - log pi] has the path gradient: lower variance, and none where p = pi (Roeder et al. 2017,
        arXiv 1703.09194).
        """
        self.flow.requires_grad_(False)
        try:
            return self._encode(positions, torch.float32)[1]
        finally:
            self.flow.requires_grad_(True)

    def _encode(self, positions: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Latents and log density on the sampled measure of positions.

        Acceptances and weights need the splines in float64, or a strongly bent one maps a sample back to elsewhere;
        the networks that bend them stay in float32. Training does with float32 throughout.
        """
        internal = self.coordinates.to_internal(positions)
        circular, linear, log_det = self.features.encode(internal)
        latent, flow_log_det = self.flow.inverse(circular.to(dtype), linear.to(dtype))
        log_prob = (
            self.flow.base_log_prob(latent)
            + flow_log_det.double()
            + log_det
            - self.coordinates.log_jacobian(internal)
            - self.metric(positions)
            + self._log_constraint_jacobian
        )
        return latent, torch.where(torch.isfinite(log_prob), log_prob, -torch.inf)

    def _encoded(self, positions: unit.Quantity | FloatArray) -> tuple[FloatArray, FloatArray]:
        """Latents of configurations and their log densities, in chunks."""

        def columns(x: Tensor) -> Tensor:
            latent, log_prob = self._encode(x)
            return torch.cat([latent.double(), log_prob[:, None]], 1)

        found = self._in_chunks(positions, columns)
        return found[:, :-1], found[:, -1]

    def _in_chunks(self, positions: unit.Quantity | FloatArray, function: Callable[[Tensor], Tensor]) -> FloatArray:
        if isinstance(positions, unit.Quantity):
            positions = positions.value_in_unit(unit.nanometer)
        x = torch.as_tensor(np.asarray(positions, dtype=np.float64))
        if x.ndim != 3 or x.shape[1:] != (self.n_atoms, 3):
            raise ValueError(f"Positions have shape {tuple(x.shape)}; expected (n, {self.n_atoms}, 3) in nm.")
        with torch.no_grad():
            parts = [function(part.to(self.device)).cpu() for part in x.split(CHUNK)]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)

    def _description(self) -> dict[str, Any]:
        return {
            "molecule": self.molecule.to_dict(),
            "rotatable": self._rotatable,
            "flow": self._config_description(),
            "temperature": self._temperature,
            "seed": self._seed,
            **({} if self.reduction is None else {"reduction": asdict(self.reduction)}),
        }

    def _config_description(self) -> dict[str, Any]:
        """Plain data of the configuration; that of a spline flow, which was the first, has no name."""
        return self.config.to_dict() | ({} if isinstance(self.config, FlowConfig) else {"name": "split"})

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"features": self.features, "flow": self.flow}
        return {
            f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
        }

    def _load_tensors(self, tensors: dict[str, Tensor]) -> None:
        for part, module in {"features": self.features, "flow": self.flow}.items():
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def _config_from(data: dict[str, Any]) -> FlowConfig | SplitConfig:
    """Rebuild a configuration from its description."""
    options = {key: value for key, value in data.items() if key != "name"}
    return SplitConfig(**options) if data.get("name") == "split" else FlowConfig(**options)


def _in_kelvin(temperature: unit.Quantity | float) -> float:
    kelvin = temperature.value_in_unit(unit.kelvin) if isinstance(temperature, unit.Quantity) else float(temperature)
    if not (kelvin > 0.0 and math.isfinite(kelvin)):
        raise ValueError(f"The temperature is {kelvin} K; it must be positive and finite.")
    return float(kelvin)
