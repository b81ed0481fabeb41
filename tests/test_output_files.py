"""What may be written where, and that a file is whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from boltzformer.errors import InputError
from boltzformer.output_files import (
    DRAFT_SUFFIX,
    check_folder,
    check_target,
    recorded_writes,
    relative_to,
    write_bytes,
    write_file,
)

from tests.support import BUNDLE


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "in" / "scan.nii.gz"
    path.parent.mkdir()
    path.write_bytes(b"the scan")
    return path


def test_an_input_is_recognised_by_path_link_hard_link_and_case(tmp_path, scan):
    (tmp_path / "linked").symlink_to(scan.parent)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "soft.nii.gz").symlink_to(scan)
    os.link(scan, tmp_path / "out" / "hard.nii.gz")
    for path in (
        scan,
        scan.parent / "SCAN.nii.gz",
        scan.parent / ".." / "in" / "scan.nii.gz",
        tmp_path / "linked" / "scan.nii.gz",
        tmp_path / "out" / "soft.nii.gz",
        tmp_path / "out" / "hard.nii.gz",
    ):
        with pytest.raises(InputError, match="is an input"):
            write_bytes(path, b"a mask", protected=[scan])
    assert scan.read_bytes() == b"the scan"
    write_bytes(scan.parent / "other.nii.gz", b"a mask", protected=[scan])


def test_a_file_of_another_origin_stays(tmp_path):
    mine = tmp_path / "ct.json"
    mine.write_text("BIDS")
    with pytest.raises(InputError, match="not written by this program"):
        write_bytes(mine, b"{}", ours=lambda path: False)
    assert mine.read_text() == "BIDS"
    write_bytes(mine, b"{}", ours=lambda path: True)
    assert mine.read_bytes() == b"{}"
    (tmp_path / "link.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="not written by this program"):
        write_bytes(tmp_path / "link.json", b"{}", ours=lambda path: True)
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(InputError, match="is a folder"):
        check_target(tmp_path)


def test_what_fails_half_way_leaves_the_earlier_file_and_no_draft(tmp_path):
    path = write_bytes(tmp_path / "a.json", b"first")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*a\.json .*free some space"):
        write_file(path, fail)
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_bytes_reach_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        true = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, true=true, name=name: (calls.append(name), true(*args))[1])
    write_bytes(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_drafts_are_hidden_unpredictable_and_no_volume_by_name(tmp_path):
    names = set()

    def note(file):
        names.update(path.name for path in tmp_path.iterdir() if path.name != "a.nii.gz")

    for _ in range(3):
        write_file(tmp_path / "a.nii.gz", note)
    assert len(names) == 3
    assert all(name.startswith(".") and name.endswith(DRAFT_SUFFIX) for name in names)


def test_drafts_of_a_killed_process_are_removed(tmp_path):
    code = """
        import os, sys
        from boltzformer.output_files import write_file
        write_file(sys.argv[1], lambda file: (file.write(b"x"), file.flush(), os.kill(os.getpid(), 9)))
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.nii.gz")],
        env={**os.environ, "PYTHONPATH": str(BUNDLE)},
    )
    (draft,) = tmp_path.iterdir()
    assert draft.name.endswith(DRAFT_SUFFIX)
    alive = tmp_path / draft.name.replace(draft.name.split("-")[1], str(os.getpid()))
    alive.touch()
    check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [alive]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write into"):
        check_folder(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write"):
        write_bytes(tmp_path / "file" / "a.json", b"")


def test_writes_are_recorded(tmp_path):
    with recorded_writes() as written:
        write_bytes(tmp_path / "a", b"")
        write_bytes(tmp_path / "b" / "c", b"")
    write_bytes(tmp_path / "d", b"")
    assert written == [tmp_path / "a", tmp_path / "b" / "c"]
    assert oct((tmp_path / "a").stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_paths_in_notes_are_relative(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii").touch()
    assert relative_to(tmp_path / "in" / "a.nii", tmp_path / "out") == "../in/a.nii"
    assert relative_to("the array", tmp_path) == "the array"
