"""The demo's rare basin, 0 < phi < 2.3 rad, beside the committed reference by replica exchange.

python -m benchmarks.populations RUN_FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.molecules import Options
from benchmarks.table import Table

REFERENCE = Path(__file__).parent / "results" / "replica_exchange_ala2.json"
AGREES = 2.0  # combined standard errors
BASIN = "phi_positive"


def run(options: Options) -> Table:
    """Compare every method of a run with the reference, by the difference in combined standard errors."""
    if options.run is None:
        return Table("Population of the rare basin", [], ["Not compared: no `--run FOLDER` was given."])
    return compare(json.loads((options.run / "summary.json").read_text()), json.loads(REFERENCE.read_text()))


def compare(summary: dict[str, Any], reference: dict[str, Any]) -> Table:
    """Compare the entries of a summary.json with the reference's; a method without an error is not judged."""
    expected = reference["populations_mbar"][BASIN]
    alone = reference["populations"][BASIN]
    rows = [_row("replica exchange (MBAR)", expected, None), _row("replica exchange, 300 K alone", alone, None)]
    for method, found in summary.get("phi_positive_population", {}).items():
        rows.append(_row(method, found, expected))
    judged = [row for row in rows if row["z"] is not None]
    wrong = [row["method"] for row in judged if abs(row["z"]) > AGREES]
    if not judged:
        verdict = "no method gives this population with an error."
    elif wrong:
        verdict = f"{', '.join(wrong)} differ by more than {AGREES:g} combined standard errors."
    else:
        verdict = f"every method agrees with replica exchange within {AGREES:g} combined standard errors."
    n_replicas = len(reference["temperatures_K"])
    length = f"The reference has {reference['length_ns_per_replica']:g} ns in each of {n_replicas} replicas"
    trips = f"{reference['phi_round_trips_all_replicas']} round trips of phi"
    return Table("Population of the rare basin", rows, [f"Verdict: {verdict} {length}, {trips}."])


def _row(method: str, found: dict[str, Any], expected: dict[str, Any] | None) -> dict[str, Any]:
    value, error = found["value"], found["error"]
    z = None
    if expected is not None and error:
        z = (value - expected["value"]) / math.hypot(error, expected["error"])
    return {"method": method, "population": value, "error": error, "z": z}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a run of `openmm-bg demo`")
    print(run(Options(run=parser.parse_args().folder)).markdown())


if __name__ == "__main__":
    main()
