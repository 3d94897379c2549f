"""Loaded densities by content hash, so that the state of a move or of a Force is a few plain values.

openmmtools rebuilds moves from their state at every copy and writes the state of every move at every iteration, and it
copies and compares Systems as text. With the networks in it, a replica exchange of three states spends its time on
writing them. A move or a Force therefore stores only what is needed to find its density again: first here, among those
that this process already holds, then in the file that the density was saved to.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from openmm_bg.density import ProposalDensity

_logger = logging.getLogger(__name__)
_densities: dict[str, ProposalDensity] = {}
_warned: set[str] = set()


def register(density: ProposalDensity) -> str:
    """Make a density known to this process, so that stored moves and Forces made with it can be restored.

    Every `BoltzmannGeneratorMove` and every Force registers its own. Call it before resuming a stored simulation if
    the density was never saved, or if its file is no longer where it was. A registered density stays in memory.

    Parameters
    ----------
    density : ProposalDensity

    Returns
    -------
    content_hash : str
        The key under which the moves find it.

    Examples
    --------
    >>> register(BoltzmannGenerator.load("new/place/ala2.bg"))   # doctest: +SKIP
    >>> ReplicaExchangeSampler.from_storage("repex.nc")          # doctest: +SKIP
    """
    if not isinstance(density, ProposalDensity):
        raise ValueError(
            f"{density!r} is not a proposal density: it lacks one of n_atoms, content_hash, pose, sample, log_prob, "
            "check, save, load. Give a BoltzmannGenerator, or an object with these attributes."
        )
    _densities[density.content_hash] = density
    return density.content_hash


def reference(density: ProposalDensity) -> dict[str, str | None]:
    """Plain values from which `resolve` finds the density again: content hash, file and class."""
    content_hash = density.content_hash
    _densities[content_hash] = density  # training may have changed it since the move was made
    path: str | None = getattr(density, "path", None)
    if path is None and content_hash not in _warned:
        _warned.add(content_hash)
        _logger.warning(
            "The density %s of a move that is copied or stored was never saved to a file: a simulation stored with it "
            "can only be resumed in this process. Call its save(path) to make it resumable anywhere.",
            content_hash[:12],
        )
    return {"content_hash": content_hash, "path": path, "class": qualified_name(type(density))}


def resolve(stored: dict[str, Any]) -> ProposalDensity:
    """Return the density of a `reference`: the registered one, or the one loaded from its file.

    Raises
    ------
    ValueError
        If it is neither registered nor saved, or its file is missing, unreadable or holds another density.
    """
    content_hash, path = stored["content_hash"], stored["path"]
    density = _densities.get(content_hash)
    if density is not None and density.content_hash == content_hash:
        return density
    remedy = (
        f"Get the density with the content hash {content_hash} from where it is now and call "
        "openmm_bg.moves.register(density) before restoring what was stored."
    )
    if path is None:
        raise ValueError(f"The density of a stored move or Force was never saved to a file. {remedy}")
    density_class = import_class(stored["class"])
    missing = [name for name in ("sample", "log_prob", "check", "save", "load") if not hasattr(density_class, name)]
    if missing:
        raise ValueError(f"{stored['class']} is no class of proposal densities: it has no {', '.join(missing)}.")
    try:
        density = density_class.load(path)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        cause = str(error).rstrip(".")
        raise ValueError(
            f"Could not load the density of a stored move or Force from {path}: {cause}. {remedy}"
        ) from error
    if density.content_hash != content_hash:
        raise ValueError(
            f"{path} holds another density (content hash {density.content_hash}) than the stored move or Force was "
            f"made with: it was trained or replaced since. {remedy}"
        )
    register(density)
    return density


def qualified_name(cls: type) -> str:
    """Name from which `import_class` finds a class again."""
    return f"{cls.__module__}:{cls.__qualname__}"


def import_class(name: str) -> Any:
    """Return the class of a qualified name, `module:Class`.

    Raises
    ------
    ValueError
        If there is no such class that can be imported.
    """
    module_name, _, class_name = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in class_name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The stored object needs the class {class_name} of the module {module_name}, which cannot be imported: "
            f"{error}. A class defined in a script or a notebook has to move to a module that is on the import path."
        ) from error
    if not isinstance(found, type):
        raise ValueError(f"The stored object names {name} as a class, but it is {found!r}.")
    return found
