"""Files that are replaced as a whole."""

from __future__ import annotations

import errno
import os

import pytest

from openmm_bg.files import write_bytes


def test_an_existing_file_is_replaced(tmp_path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path, mask, mode) -> None:
    path = tmp_path / "file"
    before = os.umask(mask)
    try:
        write_bytes(path, b"one")
        assert path.stat().st_mode & 0o777 == mode
        path.chmod(0o640)
        write_bytes(path, b"two")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"one")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*intact"):
        write_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(OSError, match=r"Cannot write .*plain/file"):
        write_bytes(tmp_path / "plain" / "file", b"one")


def test_a_folder_that_does_not_exist_is_named(tmp_path) -> None:
    with pytest.raises(OSError, match="missing/file"):
        write_bytes(tmp_path / "missing" / "file", b"one")
