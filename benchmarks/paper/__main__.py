"""Every row of the paper's ablation and its baseline on four molecules; one command, resumable.

    python -m benchmarks.paper --structure 1pga.pdb              two hours and a half on two quiet cores
    python -m benchmarks.paper --systems dipeptide chignolin     some molecules, some rows (--rows)
    python -m benchmarks.paper --quick                           a minute, to see that it runs; nothing is kept

Molecular dynamics, and each cell (molecule, row, seed) as it ends, are kept in the output folder; the same command goes
on from there. Tables go to `benchmarks/results/paper.json` and `.md`, a figure of them to `paper.svg` and to the docs.
A cell runs in a process with one thread; times are comparable if as many processes as cores run side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.paper.figure import draw
from benchmarks.paper.molecules import CASES, Case, load_data, load_molecule, prepare
from benchmarks.paper.report import write
from benchmarks.paper.rows import BASELINE, FULL, ROWS, matched_configs
from benchmarks.timing import machine
from openmm_bg.files import write_bytes

RESULTS = Path(__file__).parent.parent / "results"
PICTURE = RESULTS.parent.parent / "docs" / "images" / "paper.svg"
_FAILED = 3  # exit status of a cell that wrote why


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--systems", nargs="+", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)}")
    found.add_argument("--rows", nargs="+", choices=ROWS, metavar="NAME", help=f"of {', '.join(ROWS)}")
    found.add_argument("--seeds", type=int, help="of each row (default: 3, 3, 1 and 1)")
    found.add_argument("--seconds", type=float, help="training time of each row (default: 30, 40, 360 and 720)")
    found.add_argument("--structure", type=Path, help="PDB file of 1PGA; without it protein G is left out")
    found.add_argument("--output", type=Path, default=Path("build/paper"), help="dynamics and cells (%(default)s)")
    found.add_argument("--results", type=Path, help=f"tables (default: {RESULTS.name}/ of the benchmarks)")
    found.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cells side by side (%(default)s)")
    found.add_argument("--quick", action="store_true", help="two rows of the dipeptide, hardly any of everything")
    found.add_argument("--cell", nargs=3, metavar=("SYSTEM", "ROW", "SEED"), help=argparse.SUPPRESS)
    return found


def main() -> None:
    options = parser().parse_args()
    warnings.filterwarnings("ignore")
    if options.cell:
        sys.exit(run_cell(options))
    if not options.quick:
        run_all(options)
        return
    options.systems, options.rows = options.systems or ["dipeptide"], options.rows or [BASELINE, FULL]
    if options.output != Path("build/paper"):
        run_all(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.output = Path(scratch)
        run_all(options)


def run_all(options: argparse.Namespace) -> None:
    """Dynamics, then every cell that is missing, molecule by molecule; then the tables of all that is there."""
    names = options.systems or list(CASES)
    if "protein-g" in names and options.structure is None and not (options.output / "protein-g").exists():
        print("Protein G is left out: it needs --structure, a PDB file of entry 1PGA.", flush=True)
        names = [name for name in names if name != "protein-g"]
    described = machine()
    for name in names:
        case, folder = case_of(name, options), options.output / name
        say(f"{name}: molecule, dynamics, sizes")
        prepare(name, case, folder, options.structure)
        matched_configs(load_molecule(folder), case, folder / "widths.json")
        missing = [cell for cell in cells_of(name, options) if not cell_path(options.output, *cell).exists()]
        with ThreadPoolExecutor(options.workers) as pool:
            for _ in pool.map(lambda cell: start_cell(cell, options), missing):
                pass
    results = options.results or (options.output if options.quick else RESULTS)
    cells = collect(options.output)
    if results == RESULTS:
        write_bytes(PICTURE, draw(cells).encode())
    print(write(results, cells, {name: cost(options.output / name) for name in CASES}, described))
    say(f"kept in {results / 'paper.md'} and paper.json")


def case_of(name: str, options: argparse.Namespace) -> Case:
    case = CASES[name].quick() if options.quick else CASES[name]
    changes = {"seconds": options.seconds, "n_seeds": options.seeds}
    return replace(case, **{key: value for key, value in changes.items() if value is not None})


def cells_of(name: str, options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Cells in the order of their worth: baseline and full recipe, then the other rows; seed by seed."""
    rows = sorted(options.rows or ROWS, key=lambda row: row not in (BASELINE, FULL))
    return [(name, row, seed) for seed in range(case_of(name, options).n_seeds) for row in rows]


def cell_path(output: Path, name: str, row: str, seed: int) -> Path:
    return output / name / "cells" / f"{row}-{seed}.json"


def start_cell(cell: tuple[str, str, int], options: argparse.Namespace) -> None:
    """Run a cell in a process of its own, with one thread."""
    say(f"{' '.join(map(str, cell))} ...")
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.paper", "--output", str(options.output), "--cell", *map(str, cell)]
    command += ["--quick"] if options.quick else []
    command += ["--seconds", str(options.seconds)] if options.seconds is not None else []
    one = {"OMP_NUM_THREADS": "1", "OPENMM_CPU_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | one, check=False)
    if done.returncode not in (0, _FAILED):
        raise RuntimeError(f"The process of cell {cell} ended with status {done.returncode}; start the command again.")
    say(f"{' '.join(map(str, cell))}: {time.perf_counter() - begin:.0f} s")


def run_cell(options: argparse.Namespace) -> int:
    """Train and judge, and keep what came of it; a failure is kept as one."""
    from benchmarks.paper.cell import run

    name, row, seed = options.cell[0], options.cell[1], int(options.cell[2])
    case = case_of(name, options)
    status, found = 0, {}
    try:
        found = run(case, row, seed, options.output / name)
    except (ValueError, RuntimeError, FloatingPointError) as error:
        traceback.print_exc()
        status, found = _FAILED, {"failed": f"{type(error).__name__}: {error}"}
    path = cell_path(options.output, name, row, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"system": name, "row": row, "seed": seed, "budget": case.seconds, **found}
    write_bytes(path, (json.dumps(kept, indent=1) + "\n").encode())
    return status


def collect(output: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Finished cells by molecule and row, in the order of seeds."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in CASES:
        for row in ROWS:
            paths = sorted((output / name / "cells").glob(f"{row}-[0-9]*.json"), key=_seed)
            if paths:
                found.setdefault(name, {})[row] = [json.loads(path.read_text()) for path in paths]
    return found


def cost(folder: Path) -> dict[str, Any]:
    """What the dynamics of a molecule cost; nothing if there are none."""
    if not (folder / "data.npz").exists():
        return {}
    data = load_data(folder)
    n_chains, n_frames, n_atoms = data.positions.shape[:3]
    return {
        "n_atoms": n_atoms,
        "n_frames": n_chains * n_frames,
        "n_steps": data.cost.n_steps,
        "seconds": data.cost.seconds,
        "platform": data.cost.platform,
    }


def _seed(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
