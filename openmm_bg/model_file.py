"""Model files: tensors and plain data in one safetensors file, never pickled code."""

from __future__ import annotations

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from openmm_bg.files import write_bytes

KEY = "openmm_bg"


def content_hash(kind: str, description: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of everything that determines a density, as a hexadecimal string."""
    digest = hashlib.sha256(json.dumps([kind, description], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def write(path: str | PathLike[str], kind: str, description: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a model file; an existing file is replaced as a whole or, on failure, left alone.

    Raises
    ------
    OSError
        If the folder cannot be written to or the disk is full.
    """
    header = {
        "kind": kind,
        "version": 1,
        "description": description,
        "content_hash": content_hash(kind, description, tensors),
    }
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(stored, {KEY: json.dumps(header)}))


def read(path: str | PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Description, tensors and content hash of a model file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, was changed, or holds something else.
    """
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"There is no model file {target}.")
    try:
        with safetensors.safe_open(target, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise ValueError(
            f"{target} is not a complete model file ({error}). It may be truncated, or not made by openmm_bg: copy it "
            "again, or train anew."
        ) from error
    try:
        header = json.loads(metadata[KEY])
        found_kind, version, description = header["kind"], header["version"], header["description"]
        stored = header["content_hash"]
    except (KeyError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{target} is a safetensors file, but not one that openmm_bg wrote.") from error
    if found_kind != kind:
        raise ValueError(f"{target} holds a {found_kind}, expected a {kind}; load it with {found_kind}.load.")
    if version != 1:
        raise ValueError(f"{target} has format version {version}; this openmm_bg reads 1. Upgrade it.")
    found = content_hash(kind, description, tensors)
    if found != stored:
        raise ValueError(
            f"The content of {target} does not match its checksum ({found[:12]}, not {stored[:12]}): the file was "
            "changed after it was written. Copy it again, or train anew."
        )
    return description, tensors, stored
