"""Solvation free energy of alanine dipeptide, vacuum to OBC1, by a staged path, a map, and generators; resumable.

    python -m benchmarks.solvation_free_energy [--folder build/solvation] [--quick]

Three independent routes to one number, each with its error, its wall time and its evaluations of the energy, and what
it would have taken to reach an error of 0.05 kT. Run it again with the same folder to go on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.solvation_sampling import QUICK, SOLVENT, TEMPERATURE, VACUUM, Cost, Pieces, Sizes
from benchmarks.table import Table, describe
from benchmarks.timing import machine
from openmm_bg.analysis import Estimate, z_score
from openmm_bg.analysis.free_energies import free_energy
from openmm_bg.analysis.free_energy_result import FreeEnergyResult
from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.states import GeneratorState
from openmm_bg.analysis.targeted import targeted_free_energy
from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.files import write_bytes
from openmm_bg.training.maps import FlowMap

RESULTS = Path(__file__).parent / "results"
GOAL = 0.05  # kT
STAGED, PLAIN, TARGETED, THROUGH, GENERATORS = (
    "staged path, MBAR",
    "both ends, BAR without a map",
    "targeted BAR, trained map",
    "targeted BAR, map of the two generators",
    "MBAR through the generators",
)


@dataclass
class Route:
    """One way to the free energy.

    Attributes
    ----------
    estimate : Estimate
        f(OBC1) - f(vacuum) in kT.
    training, sampling : Cost
        What does not and what does grow with the number of samples.
    verdict : str
    details : dict
        Whatever else the result says.
    """

    estimate: Estimate
    training: Cost
    sampling: Cost
    verdict: str
    details: dict[str, Any]

    @property
    def to_goal(self) -> Cost:
        """Cost of an error of 0.05 kT: training as it is, sampling in proportion to the variance."""
        return self.training + self.sampling.scaled((self.estimate.error / GOAL) ** 2)


class Meter:
    """Wall time and energy evaluations of a stretch of the program."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._before = self._counts()

    def _counts(self) -> tuple[float, int, int]:
        counts = (self._pieces.potentials[name].n_evaluations for name in (VACUUM, SOLVENT))
        return (time.perf_counter(), *counts)  # type: ignore[return-value]

    def read(self) -> Cost:
        """What was used since the meter was made."""
        return Cost(*(now - before for now, before in zip(self._counts(), self._before, strict=True)))


def staged(pieces: Pieces) -> Route:
    """Dynamics at several strengths of the solvent, MBAR over all of them."""
    chains = [pieces.dynamics(float(strength)) for strength in pieces.lambdas]
    meter = Meter(pieces)
    kt = thermal_energy(TEMPERATURE)
    positions = np.concatenate([c.positions.reshape(-1, *c.positions.shape[2:]) for c in chains])
    vacuum, solvent = (pieces.potentials[name].energy(positions) / kt for name in (VACUUM, SOLVENT))
    lengths = np.concatenate([np.full(len(c.positions), c.positions.shape[1]) for c in chains])
    energies = ReducedEnergies(
        [f"lambda {strength:g}" for strength in pieces.lambdas],
        vacuum + pieces.lambdas[:, None] * (solvent - vacuum),
        np.array([c.positions.shape[0] * c.positions.shape[1] for c in chains]),
        temperatures=np.full(len(chains), TEMPERATURE),
        chains=np.repeat(np.arange(len(lengths)), lengths),
    ).decorrelate()
    result = free_energy(energies, rng=0)
    steps = sum((Cost(c.cost.seconds, 0, c.cost.n_steps) for c in chains[1:]), Cost())
    first = chains[0].cost
    return _route(result, Cost(), meter.read() + steps + Cost(first.seconds, first.n_steps), 0, -1)


def ends(pieces: Pieces, flow_map: FlowMap, training: Cost) -> Route:
    """Dynamics at both ends, the acceptance ratio with a map between them."""
    data = [pieces.dynamics(strength) for strength in (0.0, 1.0)]
    meter = Meter(pieces)
    result = targeted_free_energy(flow_map, pieces.states[VACUUM], data[0], pieces.states[SOLVENT], data[1], rng=0)
    dynamics = Cost(data[0].cost.seconds + data[1].cost.seconds, data[0].cost.n_steps, data[1].cost.n_steps)
    return _route(result, training, meter.read() + dynamics, VACUUM, SOLVENT)


def through_generators(pieces: Pieces) -> Route:
    """MBAR over draws of both generators, whose free energies are known; no dynamics at 300 K."""
    generators, costs = pieces.generators()
    meter = Meter(pieces)
    names = {name: f"generator of {name}" for name in generators}
    states = [*pieces.states.values(), *(GeneratorState(names[name], g) for name, g in generators.items())]
    draws = {
        names[name]: generator.sample(pieces.sizes.draws, rng=pieces.seed + k)
        for k, (name, generator) in enumerate(generators.items())
    }
    result = free_energy(states, draws, rng=0)
    return _route(result, costs[VACUUM] + costs[SOLVENT], meter.read(), VACUUM, SOLVENT)


def _route(result: FreeEnergyResult, training: Cost, sampling: Cost, start: str | int, end: str | int) -> Route:
    difference = result.difference(start, end).reduced
    return Route(difference, training, sampling, result.verdict.answer, result.as_json())


def routes(pieces: Pieces) -> dict[str, Route]:
    """Every route, the cheap ones that share the dynamics of the staged path included."""
    found = {STAGED: staged(pieces)}
    flow_map, cost = pieces.trained_map()
    found[PLAIN] = ends(pieces, FlowMap(flow_map.source, flow_map.source), Cost())
    found[TARGETED] = ends(pieces, flow_map, cost)
    found[GENERATORS] = through_generators(pieces)
    generators, costs = pieces.generators()
    through = FlowMap(generators[VACUUM], generators[SOLVENT])
    found[THROUGH] = ends(pieces, through, costs[VACUUM] + costs[SOLVENT])
    return found


def table(found: dict[str, Route]) -> Table:
    """One row for each route, and whether the three independent ones agree."""
    rows = [
        {
            "route": name,
            "ΔF / kT": f"{route.estimate.value:.3f}",
            "error / kT": f"{route.estimate.error:.3f}",
            "verdict": route.verdict,
            "seconds": (route.training + route.sampling).seconds,
            "evaluations in vacuum": (route.training + route.sampling).vacuum,
            "in solvent": (route.training + route.sampling).solvent,
            f"seconds to {GOAL} kT": route.to_goal.seconds,
            f"in vacuum to {GOAL} kT": route.to_goal.vacuum,
            f"in solvent to {GOAL} kT": route.to_goal.solvent,
        }
        for name, route in found.items()
    ]
    scores = [
        (abs(z_score(found[one].estimate, found[other].estimate)), one, other)
        for one, other in combinations((STAGED, TARGETED, GENERATORS), 2)
    ]
    worst = max(scores)
    agree = "agree" if worst[0] <= 3.0 else "DISAGREE"
    notes = [
        f"Alanine dipeptide, ff96, no constraints, {TEMPERATURE:g} K: free energy of OBC1 less that of vacuum. The "
        f"three routes {agree}: the largest difference, {worst[1]} against {worst[2]}, is {worst[0]:.1f} standard "
        "errors. The trained map's route shares the dynamics of the two ends with the staged path.",
        f"To {GOAL} kT: training as it was, sampling in proportion to the square of the error. Seconds are wall time "
        "with whatever else the machine did; an evaluation is one energy, with or without forces.",
    ]
    return Table("Solvation free energy of alanine dipeptide", rows, notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/solvation"), help="where the pieces are kept")
    parser.add_argument(
        "--quick", action="store_true", help="a minute, to see that it works; nothing is kept in results/"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    sizes = QUICK if options.quick else Sizes()
    found = routes(Pieces(options.folder / "quick" if options.quick else options.folder, sizes, options.seed))
    shown = table(found)
    print(shown.markdown())
    if options.quick:
        return
    described = machine()
    record = {
        "machine": described,
        "sizes": asdict(sizes) | {"seed": options.seed},
        "routes": {
            name: {
                "difference_kT": route.estimate.as_json(),
                "training": asdict(route.training),
                "sampling": asdict(route.sampling),
                "to_0.05_kT": asdict(route.to_goal),
                "result": route.details,
            }
            for name, route in found.items()
        },
    }
    write_bytes(RESULTS / "solvation_free_energy.json", (json.dumps(record, indent=1) + "\n").encode())
    page = f"Made by `python -m benchmarks.solvation_free_energy`.\n\n{describe(described)}\n\n{shown.markdown()}"
    write_bytes(RESULTS / "solvation_free_energy.md", page.encode())


if __name__ == "__main__":
    main()
