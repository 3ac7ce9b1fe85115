"""Folders that appear complete or not at all: interruptions, what others write meanwhile, and names of any kind."""

import os
import pathlib

import pytest
import tiny

import msrnn_jax as ms
from msrnn_jax.io import folders as module
from msrnn_jax.io.folders import FolderKind, atomic_folder, check_destination, recover

KIND = FolderKind("pair of files", lambda folder: (folder / "one").exists())


def write(path: pathlib.Path, text: str, overwrite: bool = False) -> None:
    with atomic_folder(path, KIND, overwrite) as folder:
        (folder / "one").write_text(text)
        (folder / "two").write_text(text)


def read(path: pathlib.Path) -> str:
    one, two = ((path / name).read_text() for name in ("one", "two"))
    assert one == two
    return one


def leave_as_if_killed(path: pathlib.Path, old: str) -> None:
    """What a process leaves that dies between the two renames."""
    work = path.parent / f".{path.name}.0123abcd"
    (work / "new").mkdir(parents=True)
    write(path, old)
    path.rename(work / "old")
    work.with_name(f"{work.name}.lock").touch()


def test_an_old_folder_that_a_killed_maker_had_moved_away_comes_back(tmp_path):
    leave_as_if_killed(tmp_path / "m", "old")
    recover(tmp_path / "m")
    assert read(tmp_path / "m") == "old" and os.listdir(tmp_path) == ["m"]


def test_the_leavings_of_other_names_are_not_touched(tmp_path):
    leave_as_if_killed(tmp_path / "m.2", "another")
    (tmp_path / ".m.cache").mkdir()
    (tmp_path / ".m.cache" / "mine").write_text("mine")
    (tmp_path / ".m.cache.lock").touch()
    before = sorted(os.listdir(tmp_path))
    write(tmp_path / "m", "new")
    write(tmp_path / "m", "newer", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "m"])
    assert (tmp_path / ".m.cache" / "mine").read_text() == "mine"
    recover(tmp_path / "m.2")
    assert read(tmp_path / "m.2") == "another" and read(tmp_path / "m") == "newer"


def test_a_maker_that_is_alive_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / "m", KIND, overwrite=False) as folder:
        (folder / "one").write_text("")
        recover(tmp_path / "m")
        assert (folder / "one").exists()


@pytest.mark.parametrize("moved", ["m", "new"])
def test_an_interrupt_as_a_rename_returns_loses_nothing(tmp_path, monkeypatch, moved):
    write(tmp_path / "m", "old")
    rename = pathlib.Path.rename

    def then_interrupt(self, target):
        rename(self, target)
        if self.name == moved:
            monkeypatch.setattr(pathlib.Path, "rename", rename)
            raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "rename", then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "m", "new", overwrite=True)
    assert read(tmp_path / "m") == ("old" if moved == "m" else "new")
    assert os.listdir(tmp_path) == ["m"]


def test_what_an_interrupted_clearing_leaves_is_cleared_by_the_next(tmp_path, monkeypatch):
    write(tmp_path / "m", "old")

    def interrupt(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "remove", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "m", "new", overwrite=True)
    assert read(tmp_path / "m") == "new" and len(os.listdir(tmp_path)) == 3
    write(tmp_path / "m", "newer", overwrite=True)
    assert read(tmp_path / "m") == "newer" and os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_meanwhile_is_not_replaced(tmp_path, overwrite):
    path = tmp_path / "m"
    with pytest.raises(ValueError, match="exists"), atomic_folder(path, KIND, overwrite) as folder:
        (folder / "one").write_text("mine")
        path.mkdir()
        (path / "thesis").write_text("years of work")
    assert os.listdir(tmp_path) == ["m"] and (path / "thesis").read_text() == "years of work"


def test_places_that_nothing_can_be_made_at():
    for path, message in [
        (pathlib.Path("/"), "'/' exists already"),
        (pathlib.Path("/proc/nothing"), "is no folder that can be written to"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_destination(path, KIND, overwrite=False)


@pytest.mark.parametrize("name", ["a b", "ü", "-x", ".x", "{}", "a'b", "a\nb", "~", "%41", "#1"])
def test_checkpoints_of_any_name(tmp_path, name):
    ms.save(tmp_path / name / name, tiny.CONFIG, tiny.params())
    assert ms.load(tmp_path / name / name)[0] == tiny.CONFIG
    assert os.listdir(tmp_path) == [name] and os.listdir(tmp_path / name) == [name]


@pytest.mark.parametrize("name", ["a[1]", "a]", "a*", "a?", "a\\b", "gs:"])
def test_names_that_orbax_takes_for_something_else_are_refused(tmp_path, name):
    for path in (tmp_path / name, tmp_path / name / "m"):
        with pytest.raises(ValueError, match="which Orbax cannot write; choose another path"):
            ms.save(path, tiny.CONFIG, tiny.params())
    assert os.listdir(tmp_path) == []


def test_what_is_no_file_in_a_checkpoint_is_refused(tmp_path):
    """Reading from a pipe would wait for ever, following a loop as well."""
    path = tmp_path / "m"
    ms.save(path, tiny.CONFIG, tiny.params())
    (path / "loop").symlink_to(path / "loop")
    with pytest.raises(ValueError, match="loop' is neither a file nor a folder"):
        ms.load(path)
    (path / "loop").unlink()
    (path / "params" / "_METADATA").unlink()
    os.mkfifo(path / "params" / "_METADATA")
    with pytest.raises(ValueError, match="_METADATA' is neither a file nor a folder"):
        ms.load(path)


def test_a_missing_index_of_weights_is_named(tmp_path):
    path = tmp_path / "m"
    ms.save(path, tiny.CONFIG, tiny.params())
    (path / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match=r"the index of the weights \(_METADATA, manifest.ocdbt or d/\) is missing"):
        ms.load(path)
