"""What the routes to a solvation free energy need, each piece kept in a folder; see solvation_free_energy.py.

Alanine dipeptide with ff96, no constraints, 300 K, in vacuum and in OBC1 implicit solvent: openmmtools' two test
systems. A piece that is in the folder is read, not made again; dynamics and training that were stopped go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from openmmtools import testsystems

from openmm_bg import BoltzmannGenerator, SystemPotential, train
from openmm_bg.analysis.states import EnergyState
from openmm_bg.files import write_bytes
from openmm_bg.training import default_stages
from openmm_bg.training.data import TrajectoryData
from openmm_bg.training.map_training import train_map
from openmm_bg.training.maps import FlowMap
from openmm_bg.training.simulate import simulate

FloatArray = NDArray[np.float64]

TEMPERATURE, HOT = 300.0, 700.0  # K
TIMESTEP = 0.001  # ps
STRIDE = 100  # steps between frames
CHAINS = 2
VACUUM, SOLVENT = "vacuum", "OBC1"


@dataclass(frozen=True)
class Sizes:
    """How much is sampled and trained.

    Attributes
    ----------
    lambdas : int
        States of the staged path, both ends included.
    steps, equilibration : int
        Of each of two chains at each lambda.
    hot_steps : int
        Of each of two chains at 700 K, to train the generators on.
    training : float
        Scales the steps of the default recipe.
    fit_steps, map_steps : int
        Of the fit that a map starts from, and of the training of the map.
    draws : int
        From each generator.
    """

    lambdas: int = 6
    steps: int = 300_000
    equilibration: int = 20_000
    hot_steps: int = 400_000
    training: float = 0.25
    fit_steps: int = 400
    map_steps: int = 400
    draws: int = 20_000


QUICK = Sizes(3, 10_000, 1_000, 20_000, 0.01, 30, 30, 1000)


@dataclass
class Cost:
    """What a piece took.

    Attributes
    ----------
    seconds : float
        Wall time.
    vacuum, solvent : int
        Evaluations of energies, or energies and forces, with and without the solvent.
    """

    seconds: float = 0.0
    vacuum: int = 0
    solvent: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.vacuum + other.vacuum, self.solvent + other.solvent)

    def scaled(self, factor: float) -> Cost:
        """The cost of so many times as much."""
        return Cost(self.seconds * factor, round(self.vacuum * factor), round(self.solvent * factor))


class Pieces:
    """The two systems, and everything sampled and trained for them."""

    def __init__(self, folder: Path, sizes: Sizes, seed: int) -> None:
        self.folder, self.sizes, self.seed = folder, sizes, seed
        folder.mkdir(parents=True, exist_ok=True)
        settings = asdict(sizes) | {"seed": seed}
        found = self._kept("settings", lambda: settings)
        if found != settings:
            raise SystemExit(f"{folder} holds a run with other settings, {found}; give another --folder")
        molecules = (
            testsystems.AlanineDipeptideVacuum(constraints=None),
            testsystems.AlanineDipeptideImplicit(constraints=None),
        )
        self.systems = dict(zip((VACUUM, SOLVENT), (molecule.system for molecule in molecules), strict=True))
        self.topology = molecules[0].topology
        self.start = np.array(molecules[0].positions.value_in_unit(unit.nanometer))
        self.potentials = {
            name: SystemPotential(system, backend="torch", reference=self.start)
            for name, system in self.systems.items()
        }
        self.states = {name: EnergyState(name, p, TEMPERATURE) for name, p in self.potentials.items()}

    @cached_property
    def lambdas(self) -> FloatArray:
        """Strength of the solvent along the staged path."""
        return np.linspace(0.0, 1.0, self.sizes.lambdas)

    def dynamics(self, strength: float) -> TrajectoryData:
        """Two chains at 300 K with the solvent at a part of its strength; the ends are the two systems themselves."""
        ends = {0.0: VACUUM, 1.0: SOLVENT}
        system = self.systems[ends[strength]] if strength in ends else scaled_solvent(self.systems[SOLVENT], strength)
        name = f"lambda_{strength:.3f}"
        return self._simulate(name, system, TEMPERATURE, self.sizes.steps, round(1000 * strength))

    def hot(self) -> TrajectoryData:
        """Two chains in vacuum at 700 K."""
        return self._simulate("hot", self.systems[VACUUM], HOT, self.sizes.hot_steps, 5000)

    def _simulate(self, name: str, system: openmm.System, temperature: float, steps: int, seed: int) -> TrajectoryData:
        return simulate(
            (system, self.start),
            temperature,
            n_steps=steps,
            stride=STRIDE,
            timestep=TIMESTEP,
            n_chains=CHAINS,
            n_equilibration_steps=self.sizes.equilibration,
            minimized=True,
            seed=self.seed + seed,
            folder=self.folder / name,
        )

    def generators(self) -> tuple[dict[str, BoltzmannGenerator], dict[str, Cost]]:
        """One generator for each system, both cooled down from one fit to the hot dynamics; and what each took.

        The dynamics and the fit, which both share, are counted with the vacuum's.
        """
        hot = self.hot()
        recipe = default_stages(self.sizes.training)
        wide, wide_cost = self._trained("wide", None, VACUUM, hot, recipe[:2])
        found, costs = {}, {}
        for name in (VACUUM, SOLVENT):
            found[name], costs[name] = self._trained(f"generator_{name}", wide, name, hot, recipe[2:])
        costs[VACUUM] += wide_cost + Cost(hot.cost.seconds, hot.cost.n_steps)
        return found, costs

    def _trained(
        self, name: str, wide: BoltzmannGenerator | None, potential: str, hot: TrajectoryData, stages: Any
    ) -> tuple[BoltzmannGenerator, Cost]:
        path = self.folder / f"{name}.bg"

        def make() -> dict[str, Any]:
            generator = self._untrained() if wide is None else BoltzmannGenerator.load(self.folder / "wide.bg")
            history = train(
                generator,
                self.potentials[potential],
                data=hot,
                stages=stages,
                folder=self.folder / name,
                seed=self.seed,
                progress=False,
            )
            generator.save(path)
            ess = [record["ess_fraction"] for record in history.evaluations]
            return {"seconds": history.seconds, "evaluations": history.n_energy_evaluations, "ess_fraction": ess[-1]}

        record = self._kept(name, make)
        counts = {"vacuum" if potential == VACUUM else "solvent": record["evaluations"]}
        return BoltzmannGenerator.load(path), Cost(record["seconds"], **counts)

    def _untrained(self) -> BoltzmannGenerator:
        return BoltzmannGenerator.from_system(
            self.systems[VACUUM], self.topology, TEMPERATURE, positions=self.start, seed=self.seed
        )

    def trained_map(self) -> tuple[FlowMap, Cost]:
        """A map trained on the first half of the dynamics of both systems, from the identity on a fit to the same."""
        data = {strength: self.dynamics(strength).positions for strength in (0.0, 1.0)}
        first = np.concatenate([chains[:, : chains.shape[1] // 2] for chains in data.values()])
        files = [self.folder / f"map_{end}.bg" for end in ("source", "target")]

        def make() -> dict[str, Any]:
            start = self._untrained()
            fit = start.fit(first, max_steps=self.sizes.fit_steps, progress=False)
            flow_map = FlowMap(start, start)
            vacuum, solvent = (self.potentials[name].n_evaluations for name in (VACUUM, SOLVENT))
            history = train_map(
                flow_map,
                self.states[VACUUM],
                data[0.0],
                self.states[SOLVENT],
                data[1.0],
                n_steps=self.sizes.map_steps,
                seed=self.seed,
            )
            for generator, file in zip((flow_map.source, flow_map.target), files, strict=True):
                generator.save(file)
            return {
                "seconds": fit.seconds + history.seconds,
                "vacuum": self.potentials[VACUUM].n_evaluations - vacuum,
                "solvent": self.potentials[SOLVENT].n_evaluations - solvent,
                "mean_work": [s["validation"] for s in history.steps if "validation" in s],
            }

        record = self._kept("map", make)
        flow_map = FlowMap(*(BoltzmannGenerator.load(file) for file in files))
        flow_map.remember(first.reshape(-1, *first.shape[2:]))
        return flow_map, Cost(record["seconds"], record["vacuum"], record["solvent"])

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A record of the folder, made now if it is not there."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            begin = time.perf_counter()
            write_bytes(path, json.dumps(make()).encode())
            print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def scaled_solvent(system: openmm.System, strength: float) -> openmm.System:
    """Return a copy of a System whose CustomGBForce has its energy multiplied by a number."""
    scaled = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    (solvent,) = (force for force in scaled.getForces() if isinstance(force, openmm.CustomGBForce))
    for index in range(solvent.getNumEnergyTerms()):
        expression, kind = solvent.getEnergyTermParameters(index)
        energy, *definitions = expression.split(";", 1)
        solvent.setEnergyTermParameters(index, ";".join([f"{strength!r}*({energy})", *definitions]), kind)
    return scaled
