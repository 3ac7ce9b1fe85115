"""Files that are written whole or not at all."""

import errno
import os

import pytest

from msrnn_jax.io.atomic import check_writable, write_bytes, write_json


def test_a_file_is_replaced_and_a_link_stays(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    check_writable("out", link)
    write_json(link, {"a": float("nan"), "b": (1,)})
    assert link.is_symlink() and target.read_text() == '{\n  "a": null,\n  "b": [\n    1\n  ]\n}\n'
    write_bytes(tmp_path / "deep" / "er" / "file", b"x")
    assert sorted(os.listdir(tmp_path)) == ["deep", "link", "target"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_is_what_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "broken").symlink_to(tmp_path / "none" / "file")
    check_writable("out", tmp_path / "broken")  # its folder can be made
    for path, reason in [(os.devnull, "It is no regular file"), (tmp_path, "Is a directory")]:
        with pytest.raises(ValueError, match=f"out is '{path}', which cannot be written: {reason}"):
            check_writable("out", path)
    write_json(tmp_path / "file", 1)
    with pytest.raises(ValueError, match="which cannot be written: Not a directory"):
        check_writable("out", tmp_path / "file" / "x")


def test_a_full_disk_is_told_of_with_the_name_and_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError) as failed:
        write_bytes(tmp_path / "file", b"x")
    assert failed.value.filename == str(tmp_path / "file") and os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_begun_is_told_of_with_its_name(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError) as failed:
        write_bytes(tmp_path / "file", b"x")
    assert (failed.value.errno, failed.value.filename) == (errno.EROFS, str(tmp_path / "file"))
