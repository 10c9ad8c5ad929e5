"""Inputs found, outputs complete or absent."""

import io
import os
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from ovs_methods.errors import UserError
from ovs_methods.files import DAMAGED_NPZ, list_images, output_stems, write_together


def test_folders_give_their_images_in_order(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "c.jpg").write_bytes(b"")
    found = list_images([str(tmp_path), str(tmp_path / "b.jpg")])
    assert [path.name for path in found] == ["a.PNG", "b.jpg"]


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_nothing_to_read_is_a_user_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected"):
        list_images([str(tmp_path / name)])


def test_names_of_outputs_differ(tmp_path):
    names = output_stems([tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.png"])
    assert list(names.values()) == ["a_jpg", "a_png", "b"]
    with pytest.raises(UserError, match="same outputs"):
        output_stems([tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg"])


def test_a_failing_writer_leaves_nothing_new(tmp_path):
    (tmp_path / "kept.txt").write_text("old")

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_together({tmp_path / "kept.txt": lambda path: path.write_text("new"), tmp_path / "b.txt": fail})
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "old"


def test_files_of_a_killed_run_are_swept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    abandoned = tmp_path / f".a.txt.{ended.pid}.ovs-tmp"
    living = tmp_path / f".a.txt.{os.getppid()}.ovs-tmp"
    other = tmp_path / f".b.txt.{ended.pid}.ovs-tmp"
    for path in (abandoned, living, other):
        path.write_text("half")
    write_together({tmp_path / "a.txt": lambda path: path.write_text("whole")})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, other.name, "a.txt"])


def test_threads_that_write_the_same_file_do_not_share_what_is_half_written(tmp_path):
    both = threading.Barrier(2, timeout=30)
    failed = []

    def write(text):
        def halves(path):
            path.write_text(text[:2])
            both.wait()
            with open(path, "a") as file:
                file.write(text[2:])
            both.wait()

        try:
            write_together({tmp_path / "a.txt": halves})
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=[text]) for text in ("aaaa", "bbbb")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (tmp_path / "a.txt").read_text() in ("aaaa", "bbbb")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_flipped_bit_of_an_archive_is_damage_or_harmless(save):
    """The names, the headers and the directory at the end are all that is more than numbers."""
    buffer = io.BytesIO()
    save(buffer, rows=np.arange(30000, dtype=np.float32).reshape(100, 300))
    content, kinds = buffer.getvalue(), set()
    for place in (*range(220), *range(len(content) - 140, len(content))):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            try:
                with np.load(io.BytesIO(bytes(damaged)), allow_pickle=False) as stored:
                    stored["rows"].sum()
            except DAMAGED_NPZ as error:
                kinds.add(type(error))
    assert {zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, ValueError} <= kinds
