"""What a run of a protein says about structures: the frames of each source, how they move and what they touch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import openmm.app
from numpy.typing import NDArray

from openmm_bg.analysis.contacts import ContactDifference, ContactMap, contact_difference, contact_map
from openmm_bg.analysis.energy_quantiles import energy_quantiles
from openmm_bg.analysis.ensembles import FEWEST_FRAMES
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.fluctuations import Fluctuations, rmsf
from openmm_bg.density import FloatArray
from openmm_bg.generator import BoltzmannGenerator
from openmm_bg.potentials import SystemPotential
from openmm_bg.report.records import Frames
from openmm_bg.report.results import BG_LANGEVIN, LANGEVIN, TITLES, Results
from openmm_bg.report.run_folder import RunFolder
from openmm_bg.systems import MolecularSystem
from openmm_bg.training.data import TrajectoryData

DATA, DRAWN = "data", "generated"
FEWEST_RESIDUES = 4  # fewer have no fold and no contacts
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MOST_FRAMES, _MOST_ENERGIES = 1000, 5000
_DRAWS, _DRAWS_FROM_ONE = 200, 20


class _Kept(NamedTuple):
    """What a source has left, before it is analysed."""

    title: str
    positions: FloatArray
    energies: FloatArray


@dataclass(frozen=True)
class Source:
    """One way to structures of the protein; each part is None where there is nothing to compute it from.

    Attributes
    ----------
    key, title : str
    positions : ndarray, shape (n, n_atoms, 3)
        nm; empty where no frames were kept.
    energies : ndarray, shape (m,)
        kJ/mol, +inf where a structure has none; not always of the same frames.
    fluctuations : Fluctuations or None
        Of the alpha carbons.
    contacts : ContactMap or None
    difference : ContactDifference or None
        Of its contacts from those of the data.
    quantiles : tuple of Estimate
        Of the energies, at `QUANTILES`.
    """

    key: str
    title: str
    positions: FloatArray = field(repr=False)
    energies: FloatArray = field(repr=False)
    fluctuations: Fluctuations | None
    contacts: ContactMap | None
    difference: ContactDifference | None
    quantiles: tuple[Estimate, ...]


@dataclass(frozen=True)
class Protein:
    """What the page shows of a protein.

    Attributes
    ----------
    molecule : MolecularSystem
        With the structure that the run began with.
    residues : list of str
        Names of all residues.
    alpha_residues : list of int
        Those with an alpha carbon, in the order of `Source.fluctuations`.
    sources : list of Source
    n_drawn, n_broken : int
        Structures drawn from the generator, and how many of them were not finite and were left out.
    """

    molecule: MolecularSystem
    residues: list[str]
    alpha_residues: list[int]
    sources: list[Source]
    n_drawn: int
    n_broken: int

    def source(self, key: str) -> Source | None:
        """One source, or None if the run has it not."""
        return next((source for source in self.sources if source.key == key), None)

    def summary(self) -> dict[str, Any]:
        """Entries for summary.json: lists in the order of `rmsf_residues`, of `QUANTILES` for the energies."""
        return {
            "rmsf_residues": [self.residues[index] for index in self.alpha_residues],
            "rmsf_nm": {s.key: s.fluctuations.value.tolist() for s in self.sources if s.fluctuations is not None},
            "contact_difference": {s.key: s.difference.value.as_json() for s in self.sources if s.difference},
            "energy_quantiles_kJ_per_mol": {
                s.key: [quantile.as_json() for quantile in s.quantiles] for s in self.sources if s.quantiles
            },
            "n_generated_structures": self.n_drawn,
            "n_generated_not_finite": self.n_broken,
        }


def alpha_carbons(topology: openmm.app.Topology) -> list[openmm.app.topology.Atom]:
    """Return the alpha carbons of all residues that have the backbone atoms N, CA and C."""
    found = []
    for residue in topology.residues():
        own = {atom.name: atom for atom in residue.atoms()}
        if {"N", "CA", "C"} <= own.keys():
            found.append(own["CA"])
    return found


def read_protein(folder: RunFolder, results: Results, seed: int = 0) -> Protein | None:
    """Read and analyse the structures of a run; None if its molecule has no four residues with a backbone.

    Parameters
    ----------
    folder : RunFolder
    results : Results
        Of the same folder.
    seed : int
        Of the structures that are drawn from the generator, and of the resamples for the errors.

    Raises
    ------
    ValueError
        If a file in the folder is damaged.
    """
    if not folder.system_file.exists():
        return None
    molecule = folder.read_system()
    alpha = alpha_carbons(molecule.topology)
    if len(alpha) < FEWEST_RESIDUES:
        return None
    no_frames = np.zeros((0, molecule.n_atoms, 3))
    kept: dict[str, _Kept] = {}
    if folder.data_file.exists():
        data = TrajectoryData.load(folder.data_file)
        positions = data.positions.reshape(-1, molecule.n_atoms, 3)
        kept[DATA] = _Kept(f"Training data, {data.temperature:g} K", positions, data.energies.ravel())
    if results.langevin is not None:
        kept[LANGEVIN] = _Kept(TITLES[LANGEVIN], no_frames, results.langevin.energy)
    if results.chain is not None:
        walked = no_frames
        if folder.chain_frames_file.exists():
            walked = Frames.load(folder.chain_frames_file).positions.astype(np.float64)
        kept[BG_LANGEVIN] = _Kept(TITLES[BG_LANGEVIN], walked, results.chain.energy)
    n_drawn = n_broken = 0
    if folder.generator_file.exists():
        origins = kept[DATA].positions if DATA in kept else molecule.positions[None]
        drawn, energies, n_broken = _draw(folder, molecule, origins, seed)
        n_drawn = len(drawn) + n_broken
        kept[DRAWN] = _Kept("Generated, as drawn", drawn, energies)
    sources = _analysed(molecule, kept, [atom.index for atom in alpha], seed)
    residues = [f"{residue.name}{residue.id}" for residue in molecule.topology.residues()]
    return Protein(molecule, residues, [atom.residue.index for atom in alpha], sources, n_drawn, n_broken)


def _draw(
    folder: RunFolder, molecule: MolecularSystem, origins: FloatArray, seed: int
) -> tuple[FloatArray, FloatArray, int]:
    """Structures from the generator that are finite, the energies of all, and how many were not finite.

    A generator that keeps the frozen coordinates takes them from frames that are spread over the data.
    """
    generator = BoltzmannGenerator.load(folder.generator_file, system=molecule.system)
    rng = np.random.default_rng([seed, 3])
    if generator.keeps_frozen:
        chosen = origins[_spread(len(origins), _DRAWS // _DRAWS_FROM_ONE)]
        n = _DRAWS // len(chosen)
        drawn = np.concatenate([generator.sample(n, rng=rng, frozen_from=x).positions for x in chosen])
    else:
        drawn = generator.sample(_DRAWS, rng=rng).positions
    finite = np.asarray(np.isfinite(drawn).all(axis=(1, 2)))
    with SystemPotential(molecule.system, molecule.topology, backend="openmm") as potential:
        energies = potential.energy(drawn)
    return drawn[finite], energies, int(np.count_nonzero(~finite))


def _analysed(molecule: MolecularSystem, kept: dict[str, _Kept], alpha: list[int], seed: int) -> list[Source]:
    topology = molecule.topology
    shown = {key: found.positions[_spread(len(found.positions), _MOST_FRAMES)] for key, found in kept.items()}
    has_reference = len(shown.get(DATA, ())) >= FEWEST_FRAMES
    sources = []
    for key, positions in shown.items():
        energies = kept[key].energies[_spread(len(kept[key].energies), _MOST_ENERGIES)]
        fluctuations = contacts = difference = None
        quantiles: tuple[Estimate, ...] = ()
        if len(positions) >= FEWEST_FRAMES:
            fluctuations = rmsf(positions, topology, atoms=alpha, rng=seed)
            contacts = contact_map(positions, topology)
            if key != DATA and has_reference:
                difference = contact_difference(positions, shown[DATA], topology)
        if len(energies) >= FEWEST_FRAMES:
            quantiles = energy_quantiles(energies, probabilities=QUANTILES, rng=seed)
        title = kept[key].title
        sources.append(Source(key, title, positions, energies, fluctuations, contacts, difference, quantiles))
    return sources


def _spread(n: int, most: int) -> NDArray[np.int64]:
    """Rows of at most so many, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
