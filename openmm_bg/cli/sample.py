"""`openmm-bg sample`: both chains and the reweighted generator."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from openmm_bg.cli import side_process
from openmm_bg.cli.chains import generator_chain, langevin_chain
from openmm_bg.cli.defaults import WALK_SHARES
from openmm_bg.cli.sample_options import SampleOptions, dynamics
from openmm_bg.cli.terminal import Report, progress_bar, say
from openmm_bg.density import FloatArray
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import PlatformChoice, SystemPotential, choose_platform
from openmm_bg.potentials.platforms import n_cores
from openmm_bg.report.records import Chain, GeneratorSamples
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.training.data import read_npz

if TYPE_CHECKING:
    from openmm_bg.moves.kernel import Kernel

Part = Literal["all", "chain", "langevin", "generator"]

_CHUNK = 2048
_LONGEST_DRAW = 15.0  # s, for the samples that are reweighted


def sample(folder: RunFolder, options: SampleOptions, part: Part = "all") -> None:
    """Run what is asked for, continuing what is there and repeating nothing.

    Two chains that share no GPU run side by side, each on half of the cores; else one after the other.

    Raises
    ------
    ValueError
        If there is no generator, or a chain is there that was sampled with another one or with other options.
    """
    molecule, generator = folder.read_system(), load_generator(folder)
    options = options.resolved(generator, folder)
    if part == "generator" and generator.why_no_density is not None:
        raise ValueError(f"{folder.generator_file} has no density to reweight with: {generator.why_no_density}")
    todo = _begin(folder, options, part, generator)
    if not todo:
        say("What was asked for is there already.")
        return
    beside = {"sample", "langevin"} <= todo and n_cores() > 1
    platform = choose_platform(
        molecule.system, molecule.positions, options.platform, task="dynamics", n_concurrent=2 if beside else 1
    )
    if "tune" in todo:
        with folder.timed("tune"):
            _tune(folder, options, platform)
    if beside and not platform.is_gpu:
        _chains_side_by_side(folder, options, platform)
    else:
        if "sample" in todo:
            with folder.timed("sample"):
                _chain(folder, options, platform)
        if "langevin" in todo:
            with folder.timed("langevin"), progress_bar("Langevin alone") as report:
                folder.update_phase("langevin", **run_langevin(folder.path, options, platform, report))
    if "reweight" in todo:
        with folder.timed("reweight"):
            _generator_samples(folder, options)


def _begin(folder: RunFolder, options: SampleOptions, part: Part, loaded: BoltzmannGenerator) -> set[str]:
    """Refuse a chain that cannot be continued with these options; record them, and return the phases that are to run.

    Only the wall time of a chain may grow. Samples to reweight are drawn anew if anything differs, and so is the
    tuning of a walk, if its chain was not begun.
    """
    generator = loaded.content_hash
    usual = dynamics(folder)
    before = {"kernel": "independence", "timestep": usual.timestep, "friction": usual.friction}
    asked_now = {"kernel": options.kernel, "timestep": options.timestep, "friction": options.friction}
    unusual = {key: value for key, value in asked_now.items() if value != before[key]}
    chain = {
        "n_proposals": options.n_proposals, "n_steps": options.n_steps, "seed": options.seed, "generator": generator,
        "seconds": options.seconds, **unusual,
    }  # fmt: skip
    phases: dict[str, tuple[str, Path, dict[str, Any]]] = {
        "sample": ("chain", folder.chain_file, chain),
        "langevin": ("langevin", folder.langevin_file, {"seed": options.seed, "seconds": options.seconds}),
        "reweight": (
            "generator",
            folder.generator_samples_file,
            {"n_samples": options.n_samples, "seed": options.seed, "generator": generator},
        ),
    }
    if loaded.why_no_density is not None:
        del phases["reweight"]
    wanted = {name: entry for name, entry in phases.items() if part in ("all", entry[0])}
    if "sample" in wanted:
        _check_same_generator(folder, generator)
    for name, (_, file, asked) in wanted.items():
        if name != "reweight" and file.exists():
            compared = {key: value for key, value in asked.items() if key != "seconds"}
            if folder.is_finished(name) and options.seconds < folder.asked(name).get("seconds", 0.0):
                compared = asked
            if name == "sample":
                compared = {**compared, **asked_now}
            folder.check_asked(name, compared, f"remove {file.name} to sample anew", unless_recorded=before)
    todo = set()
    for name, (_, file, asked) in wanted.items():
        stored = {**asked, **folder.asked(name)}
        if not file.exists():
            folder.restart_phase(name)
        elif folder.is_finished(name) and stored == asked:
            continue
        folder.update_phase(name, finished=False, asked=asked)
        todo.add(name)
    if "sample" in wanted:
        folder.update_settings({"generator": generator, "why_no_density": loaded.why_no_density})
    if options.kernel == "walk" and "sample" in todo and not folder.chain_file.exists():
        asked = {**chain, "seconds": options.tune}
        if not (folder.is_finished("tune") and folder.equilibrated_file.exists() and folder.asked("tune") == asked):
            folder.restart_phase("tune")
            folder.update_phase("tune", asked=asked)
            todo.add("tune")
    return todo


def load_generator(folder: RunFolder) -> BoltzmannGenerator:
    """Read the generator of a folder and check that it is one for the folder's System."""
    if not folder.generator_file.exists():
        raise ValueError(f"{folder.generator_file} is missing; run `openmm-bg train {folder.path}` first")
    return BoltzmannGenerator.load(folder.generator_file, system=folder.read_system().system)


def _check_same_generator(folder: RunFolder, generator: str) -> None:
    """Refuse to continue a chain with another generator than it was begun with; its acceptance would be a mixture."""
    known = folder.asked("sample").get("generator") or folder.settings.get("generator")
    if folder.chain_file.exists() and known not in (None, generator):
        raise ValueError(
            f"{folder.chain_file} was sampled with another generator than {folder.generator_file} is now (content hash "
            f"{str(known)[:12]}, now {generator[:12]}). Move chain.npz away to start anew"
        )


def run_langevin(path: Path, options: SampleOptions, platform: PlatformChoice, report: Report) -> dict[str, Any]:
    """Run Langevin dynamics alone; returns the record of the phase and leaves run.json to the caller."""
    folder = RunFolder.open(path)
    record = langevin_chain(
        folder.read_system(), dynamics(folder), folder.langevin_file, seconds=options.seconds, platform=platform,
        seed=options.seed + 1, report=report, start=_equilibrated(folder),
    )  # fmt: skip
    return {"finished": True, "platform": platform.name, **record}


def _chains_side_by_side(folder: RunFolder, options: SampleOptions, platform: PlatformChoice) -> None:
    torch.set_num_threads(n_cores() // 2)
    context = get_context("spawn")
    stop = context.Event()
    with folder.timed("sample"), ProcessPoolExecutor(1, context, side_process.prepare, (stop,)) as pool:
        alone = pool.submit(side_process.langevin, folder.path, options, platform)
        try:
            _chain(folder, options, platform)
        except BaseException:
            stop.set()
            raise
        record = alone.result()
        seconds = float(Chain.load(folder.langevin_file).seconds[-1])
        folder.update_phase("langevin", **record, seconds=seconds, concurrent_with="sample")


def _tune(folder: RunFolder, options: SampleOptions, platform: PlatformChoice) -> None:
    """Relax the structure and fix the steps of the walk, before any state is a sample."""
    from openmm_bg.cli.equilibration import equilibrate
    from openmm_bg.moves import LatentWalk

    assert options.n_proposals is not None  # resolved
    assert options.n_steps is not None
    generator = load_generator(folder)
    _to_gpu(generator, platform)
    shares = {"global": 1.0}
    if generator.latent_labels is not None:
        blocks = {*generator.latent_labels.kind, *(("rotamer",) if generator.rotamers else ())}
        shares = {kind: share for kind, share in WALK_SHARES.items() if kind in blocks}
    with progress_bar("Tuning the walk") as report:
        kernel, record = equilibrate(
            folder.read_system(), generator, options.dynamics(folder), folder.equilibrated_file,
            kernel=LatentWalk(n_proposals=options.n_proposals, blocks=[*shares], shares=[*shares.values()]),
            seconds=options.tune, platform=platform, n_steps=options.n_steps, seed=options.seed + 2, report=report,
        )  # fmt: skip
    folder.update_phase("tune", finished=True, platform=platform.name, **record)
    if kernel.tuning is None:
        say(f"[yellow]The walk: {record['remark']}[/]")
        return
    accepted = zip(kernel.tuning.kinds, kernel.tuning.acceptance, strict=True)
    say(f"Walk tuned and fixed; accepted: {', '.join(f'{kind} {fraction:.0%}' for kind, fraction in accepted)}")


def _equilibrated(folder: RunFolder) -> FloatArray | None:
    """Where the chains begin, if there was an equilibration."""
    return read_npz(folder.equilibrated_file)["positions"] if folder.equilibrated_file.exists() else None


def _kernel(folder: RunFolder, options: SampleOptions) -> Kernel:
    from openmm_bg.moves import Independence
    from openmm_bg.moves.kernel import restored_kernel

    if options.kernel == "independence":
        assert options.n_proposals is not None  # resolved
        return Independence(n_proposals=options.n_proposals)
    stored = folder.phases.get("tune", {}).get("kernel")
    if stored is None:
        raise ValueError(
            f"{folder.run_file} does not say with which steps {folder.chain_file.name} was sampled; remove that file "
            "to tune the walk and sample anew"
        )
    return restored_kernel(stored)


def _chain(folder: RunFolder, options: SampleOptions, platform: PlatformChoice) -> None:
    assert options.n_steps is not None  # resolved
    generator = load_generator(folder)
    _to_gpu(generator, platform)
    with progress_bar("BG + Langevin") as report:
        record = generator_chain(
            folder.read_system(), generator, options.dynamics(folder), folder.chain_file,
            kernel=_kernel(folder, options),
            seconds=options.seconds, platform=platform, n_steps=options.n_steps, seed=options.seed, report=report,
            start=_equilibrated(folder),
        )  # fmt: skip
    folder.update_phase("sample", finished=True, platform=platform.name, **record)
    folder.update_settings({"platform": platform.name})
    fraction = record["n_accepted"] / record["n_proposed"]
    folder.update_summary({"fraction_accepted": fraction, "platform": platform.name})
    say(f"{fraction:.1%} of {record['n_proposed']:,} proposals accepted")


def _generator_samples(folder: RunFolder, options: SampleOptions) -> None:
    """Draw fresh samples and weigh them."""
    from openmm_bg.analysis.dihedrals import backbone_pairs, ramachandran_angles
    from openmm_bg.analysis.weights import reweight
    from openmm_bg.density import Samples

    molecule, generator = folder.read_system(), load_generator(folder)
    started = time.perf_counter()
    rng = np.random.default_rng([options.seed, 2])
    parts: list[Samples] = []
    with SystemPotential(molecule.system, molecule.topology, platform=options.platform) as potential:
        _to_gpu(generator, potential.platform)
        with progress_bar("Reweighting the generator") as report:
            while (drawn := sum(len(part) for part in parts)) < options.n_samples:
                if parts and time.perf_counter() - started > _LONGEST_DRAW:
                    break
                parts.append(generator.sample(min(_CHUNK, options.n_samples - drawn), rng=rng))
                report(0.5 * drawn / options.n_samples, f"{drawn:,} samples")
            samples = Samples(
                np.concatenate([part.positions for part in parts]), np.concatenate([part.log_prob for part in parts])
            )
            report(0.5, "energies")
            weights = reweight(samples, potential, dynamics(folder).temperature)
        phi, psi = ramachandran_angles(samples.positions, backbone_pairs(molecule.topology))
        GeneratorSamples(phi, psi, weights.energies, weights.log_weights).save(folder.generator_samples_file)
        folder.update_phase(
            "reweight", finished=True, n_evaluations=potential.n_evaluations, platform=potential.platform_name
        )  # fmt: skip
    folder.update_summary({"ess_fraction": weights.ess_fraction, "pareto_k": weights.pareto_k})
    say(f"ESS / N {weights.ess_fraction:.1%} of {len(weights):,} samples, Pareto k {weights.pareto_k:.2f}")


def _to_gpu(generator: BoltzmannGenerator, platform: PlatformChoice) -> None:
    if platform.name in ("CUDA", "torch") and torch.cuda.is_available():
        generator.to("cuda")
