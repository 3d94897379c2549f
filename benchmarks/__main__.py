"""Run the benchmarks, print their tables and keep them.

python -m benchmarks [--quick] [--run FOLDER] [--only NAME ...] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

from benchmarks import (
    annealed,
    annealed_water,
    coordinates,
    demo,
    efficiency,
    energies,
    flow,
    move,
    populations,
    protein_cost,
    replica_exchange,
    replica_exchange_cost,
    splines,
    split_flow,
)
from benchmarks.molecules import Options
from benchmarks.table import Table, describe, write
from benchmarks.timing import machine

BENCHMARKS = {
    "coordinates": coordinates.run,
    "splines": splines.run,
    "generator": flow.run,
    "split-flow": split_flow.run,
    "energies": energies.run,
    "move": move.run,
    "replica-exchange": replica_exchange_cost.run,
    "exchange": replica_exchange.run,
    "exchange-overhead": replica_exchange.run_overhead,
    "efficiency": efficiency.run,
    "annealed": annealed.run,
    "annealed-water": annealed_water.run,
    "demo": demo.run,
    "populations": populations.run,
    "protein-cost": protein_cost.run,
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it works; nothing is kept")
    parser.add_argument("--run", type=Path, help="folder of a run of `openmm-bg demo`: its generator and its figures")
    parser.add_argument("--only", nargs="+", choices=sorted(BENCHMARKS), default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--output", type=Path, help=f"where to keep the tables (default: {RESULTS.name}/ here)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.run is not None and not (options.run / "summary.json").is_file():
        parser.error(f"{options.run} holds no summary.json; give the folder of a finished run of `openmm-bg demo`")
    described = machine()
    print(describe(described), end="\n\n")
    tables: dict[str, Table] = {}
    for name in options.only:
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        tables[name] = BENCHMARKS[name](Options(options.quick, options.run))
        print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)
        print(tables[name].markdown(), flush=True)
    folder = options.output or (None if options.quick else RESULTS)
    if folder is not None:
        write(folder, described, tables)
        print(f"Kept in {folder / 'benchmarks.md'} and benchmarks.json.")


if __name__ == "__main__":
    main()
