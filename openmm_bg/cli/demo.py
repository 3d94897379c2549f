"""`openmm-bg demo`: from nothing to the report, in minutes."""

from __future__ import annotations

import time

from openmm_bg.cli.defaults import Demo
from openmm_bg.cli.sample import sample
from openmm_bg.cli.sample_options import SampleOptions
from openmm_bg.cli.simulate import SimulateOptions, simulate
from openmm_bg.cli.terminal import say
from openmm_bg.cli.train import TrainOptions, train
from openmm_bg.report import RunFolder, write_report


def demo(folder: RunFolder, chosen: Demo, platform: str, seed: int, *, quick: bool = False) -> None:
    """Run all phases that the folder does not hold yet, then write the report."""
    started = time.perf_counter()
    schedule = chosen.quick if quick else chosen.full
    data = SimulateOptions(
        system=chosen.system, timestep=chosen.timestep, hydrogen_mass=chosen.hydrogen_mass, seconds=schedule.simulate,
        platform=platform, seed=seed,
    )  # fmt: skip
    simulate(folder, data)
    training = TrainOptions(
        seconds=schedule.train, platform=platform, seed=seed, coordinates=chosen.coordinates, frozen=chosen.frozen
    )
    train(folder, training)
    options = SampleOptions(
        seconds=schedule.sample, n_samples=schedule.n_samples, tune=schedule.tune, platform=platform, seed=seed
    )
    sample(folder, options)
    page = write_report(folder.path)
    summary = folder.read_summary()
    say(f"\n[bold]{summary['verdict_sentence']}[/]")
    say(f"{time.perf_counter() - started:.0f} s in all. Open [bold]{page}[/] in a browser.")
