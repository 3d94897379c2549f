"""Systems from XML that may come from anywhere."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from xml.etree import ElementTree

import openmm

_RUNS_CODE = "PythonForce"


def read_system(path: str | PathLike[str]) -> openmm.System:
    """Read a System as `openmm.XmlSerializer` wrote it, unless reading it would run code that it holds.

    Raises
    ------
    OSError
        If there is no such file.
    ValueError
        If it is not the XML of a System, or holds an `openmm.PythonForce`: its XML is a pickle, and loading a pickle
        runs whatever its author put in.
    """
    try:
        text = Path(path).read_text()
        values = {value for element in ElementTree.fromstring(text).iter() for value in element.attrib.values()}
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise ValueError(f"{path} is not a file that openmm.XmlSerializer wrote: {error}") from error
    if _RUNS_CODE in text or any(_RUNS_CODE in value for value in values):
        raise ValueError(
            f"{path} holds a {_RUNS_CODE}. Its XML is pickled Python code, which would run on reading, so it is not "
            f"read. Build the System in Python and add the force there, or write the file anew without it."
        )
    try:
        system = openmm.XmlSerializer.deserialize(text)
    except openmm.OpenMMException as error:
        raise ValueError(f"{path} is not a file that openmm.XmlSerializer wrote: {error}") from error
    if not isinstance(system, openmm.System):
        raise ValueError(f"{path} holds a {type(system).__name__}; expected a serialised openmm.System.")
    return system
