"""What did not land is on the disk: for this process, and for whoever comes after it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import msgspec
import pytest
from journal_entries import entry, files

from chat_nest.ledger.journal import Entry, Journal

CRASH = """
import os, sys
import msgspec
from chat_nest.ledger.journal import Entry, Journal
journal = Journal(sys.argv[1])
for line in sys.stdin.buffer:
    journal.add(msgspec.json.decode(line, type=Entry))
for key in sys.argv[2:]:
    journal.land(key)
os._exit(9)
"""


def crashed(directory, *entries: Entry, landed=()) -> None:
    """A process that kept these entries, marked some as landed, and died."""
    lines = b"".join(msgspec.json.encode(one) + b"\n" for one in entries)
    run = subprocess.run([sys.executable, "-c", CRASH, directory, *landed], input=lines, check=False, timeout=240)
    assert run.returncode == 9


def test_nothing_is_touched_before_something_fails(tmp_path) -> None:
    journal = Journal(tmp_path / "deep" / "journal")
    assert list(journal.adopt()) == []
    assert journal.close() == 0
    assert files(tmp_path) == []


def test_an_entry_of_a_dead_process_is_read_back_whole(tmp_path) -> None:
    crashed(tmp_path, entry("a"), entry("b", "post"), entry("c", "release"), landed=[entry("b", "post").key])
    journal = Journal(tmp_path)
    assert list(journal.adopt()) == [entry("a"), entry("c", "release")]
    assert list(journal.adopt()) == []
    journal.land(entry("a").key)
    assert len(files(tmp_path)) == 1
    journal.land(entry("c", "release").key)
    assert files(tmp_path) == []


def test_the_file_goes_when_the_last_entry_has_landed(tmp_path) -> None:
    journal = Journal(tmp_path)
    for id in "ab":
        journal.add(entry(id))
        journal.add(entry(id))
    [path] = tmp_path.iterdir()
    assert len(path.read_bytes().splitlines()) == 2
    journal.land(entry("a").key)
    journal.land("unknown")
    assert path.exists()
    journal.land(entry("b").key)
    assert files(tmp_path) == []
    journal.add(entry("c"))
    assert journal.close() == 1


def test_files_are_their_users_alone_and_hold_no_more_than_claims(tmp_path) -> None:
    before = os.umask(0)
    try:
        journal = Journal(tmp_path / "journal")
        journal.add(entry())
    finally:
        os.umask(before)
    [path] = (tmp_path / "journal").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_file_of_a_living_process_is_left_alone_and_that_of_one_that_left_is_taken_once(tmp_path) -> None:
    living, first, second = Journal(tmp_path), Journal(tmp_path), Journal(tmp_path)
    living.add(entry("a"))
    assert list(first.adopt()) == []
    assert living.close() == 1
    assert list(first.adopt()) == [entry("a")]
    assert list(second.adopt()) == []
    assert first.close() == 1
    assert list(second.adopt()) == [entry("a")]


def test_an_entry_of_an_adopted_file_is_not_written_again(tmp_path) -> None:
    crashed(tmp_path, entry("a"))
    journal = Journal(tmp_path)
    journal.adopt()
    journal.add(entry("a"))
    assert len(files(tmp_path)) == 1
    journal.land(entry("a").key)
    assert files(tmp_path) == []


def test_a_torn_last_line_loses_only_itself(tmp_path, caplog) -> None:
    crashed(tmp_path, entry("a"), entry("b"), entry("c"))
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    journal = Journal(tmp_path)
    assert list(journal.adopt()) == [entry("a"), entry("b")]
    assert "cut off" in caplog.text
    journal.land(entry("a").key)
    journal.close()
    assert list(Journal(tmp_path).adopt()) == [entry("b")]
    assert files(tmp_path) == [path.name]


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"{}x", b'{"entry":{"ending":"steal"}}', b'{"other":1}', b"[]"])
def test_a_corrupt_line_is_set_aside_and_the_others_land(tmp_path, caplog, bad) -> None:
    crashed(tmp_path, entry("a"), entry("b"))
    [path] = tmp_path.iterdir()
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, bad, second, b""]))
    journal = Journal(tmp_path)
    assert list(journal.adopt()) == [entry("a"), entry("b")]
    aside = path.with_suffix(".corrupt")
    assert aside.read_bytes() == bad + b"\n"
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert aside.name in caplog.text and "steal" not in caplog.text


def test_half_a_line_that_a_full_disk_took_is_taken_back(tmp_path, monkeypatch) -> None:
    journal = Journal(tmp_path)
    journal.add(entry("a"))
    real, left = os.write, [30]

    def full(fd: int, data: bytes) -> int:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[: left.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(2):
            with pytest.raises(OSError):
                journal.add(entry("b"))
    journal.add(entry("c"))
    journal.close()
    assert list(Journal(tmp_path).adopt()) == [entry("a"), entry("c")]


def test_a_full_disk_that_takes_a_file_and_nothing_in_it_is_left_without_a_file(tmp_path, monkeypatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(2):
            with pytest.raises(OSError):
                journal.add(entry("a"))
            assert files(tmp_path) == []
    journal.land(entry("a").key)
    journal.add(entry("b"))
    journal.land(entry("b").key)
    assert files(tmp_path) == []


def test_a_file_that_was_made_and_never_written_is_removed(tmp_path) -> None:
    (tmp_path / "1-aa.journal").touch()
    (tmp_path / "note.txt").touch()
    assert list(Journal(tmp_path).adopt()) == []
    assert files(tmp_path) == ["note.txt"]


def test_a_directory_that_is_none_is_refused(tmp_path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="must be a directory to write in"):
            Journal(path)
