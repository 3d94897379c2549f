"""A FreeEnergyResult as a table and as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from openmm import unit

if TYPE_CHECKING:
    import pandas as pd

    from openmm_bg.analysis.free_energy_result import FreeEnergyResult


def data_frame(result: FreeEnergyResult) -> pd.DataFrame:
    """Return one row for each state: free energies in kT relative to the first, errors, overlap, ESS, k-hat."""
    import pandas as pd

    return pd.DataFrame(
        {
            "temperature_K": result.temperatures,
            "n_samples": result.n_k,
            "free_energy_kT": result.f_k,
            "error_kT": result.errors[0],
            "asymptotic_error_kT": result.asymptotic_errors[0],
            "bootstrap_error_kT": result.bootstrap_errors[0],
            "ess": result.ess,
            "pareto_k": result.pareto_k,
            "mean_reduced_potential": result.mean_u,
        },
        index=pd.Index(result.names, name="state"),
    )


def plain(result: FreeEnergyResult) -> dict[str, Any]:
    """Return the result as plain data, with the unit in every name; None for what is not finite."""
    absolute = {}
    if result.measure is not None and np.isfinite(result.known).any():
        for name in result.names:
            found = result.absolute(name)
            absolute[name] = {
                "free_energy_kT": found.reduced.as_json(),
                "measure": found.measure,
                "volume_nm3": None if found.volume is None else found.volume.value_in_unit(unit.nanometer**3),
            }
    return {
        "method": result.method,
        "states": list(result.names),
        "temperatures_K": _finite(result.temperatures),
        "n_samples": result.n_k.tolist(),
        "free_energies_kT": _finite(result.f_k),
        "differences_kT": _finite(result.differences),
        "errors_kT": _finite(result.errors),
        "asymptotic_errors_kT": _finite(result.asymptotic_errors),
        "bootstrap_errors_kT": _finite(result.bootstrap_errors),
        "absolute": absolute,
        "mean_reduced_potentials": _finite(result.mean_u),
        "overlap": _finite(result.overlap),
        "ess": _finite(result.ess),
        "pareto_k": _finite(result.pareto_k),
        "second_estimates": [
            {"method": d.method, "from": d.start, "to": d.end, "difference_kT": d.reduced.as_json()}
            for d in result.second_estimates
        ],
        "statistical_inefficiencies": dict(result.energies.inefficiencies) if result.energies else {},
        "verdict": result.verdict.answer,
        "verdict_sentence": result.verdict.sentence,
        "checks": [{"name": c.name, "status": c.status, "text": c.text} for c in result.verdict.checks],
    }


def _finite(values: ArrayLike) -> Any:
    array = np.asarray(values, dtype=np.float64)
    plain = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()
