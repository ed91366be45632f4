"""The embedding cache when things go wrong: killed writers, rivals, damaged files, full disks, foreign folders."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from latentlab_shared import _index
from latentlab_shared.embeddings import EmbeddingCache, Fingerprint
from latentlab_shared.errors import RunFailed, UserError

FINGERPRINT = Fingerprint("tiny", "a" * 64)
DIM = 4
fork = multiprocessing.get_context("fork")


def encode(texts: list[str]) -> np.ndarray:
    """Vectors that are a function of the text and exact in float16."""
    rows = [np.arange(DIM) + zlib.crc32(text.encode()) % 1000 for text in texts]
    return np.array(rows, dtype=np.float32).reshape(-1, DIM)


def make(folder: Path, **options) -> EmbeddingCache:
    return EmbeddingCache(folder, FINGERPRINT, DIM, **({"shard_rows": 32} | options))


def filled(folder: Path, count: int = 40, **options) -> list[str]:
    texts = [f"text {i}" for i in range(count)]
    with make(folder, **options) as cache:
        cache.put_many(texts, encode(texts))
    return texts


def only_shard(folder: Path) -> Path:
    (path,) = (folder / "shards").glob("*.npy")
    return path


def edit(folder: Path, *statement: object) -> None:
    with sqlite3.connect(folder / "index.sqlite") as db:
        db.execute(*statement)
    db.close()


# --------------------------------------------------------------------- kill -9


def _write_until_killed(folder: Path, number: int, acknowledge: int) -> None:
    """Put batches of all sizes, and compact now and then; every batch is told to the parent once it is stored."""
    random_ = random.Random(number)
    with make(folder) as cache:
        for batch in range(10_000):
            texts = [f"{number} {batch} {i}" for i in range(random_.choice([1, 3, 20, 40, 90]))]
            cache.put_many(texts, encode(texts))
            os.write(acknowledge, (json.dumps(texts) + "\n").encode())
            if random_.random() < 0.2:
                cache.compact()


def test_fifty_kills_lose_nothing_that_was_stored(tmp_path):
    stored: list[str] = []
    moments = random.Random(0)
    for number in range(50):
        reading, writing = os.pipe()
        child = fork.Process(target=_write_until_killed, args=(tmp_path, number, writing))
        child.start()
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            lines = [pipe.readline()]  # the first batch is in
            time.sleep(moments.uniform(0, 0.03))
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            lines += pipe.readlines()
        assert child.exitcode == -signal.SIGKILL
        stored += [text for line in lines if line.endswith(b"\n") for text in json.loads(line)]
        with make(tmp_path) as cache:
            assert cache.verify() == []
            vectors, found = cache.get_many(stored)
            assert found.all() and np.array_equal(vectors, encode(stored))
            assert len(cache) <= len(stored) + 90 * (number + 1)  # at most a batch in flight each time
    with make(tmp_path) as cache:
        (tmp_path / "shards" / f".{'0' * 32}.npy.tmp").write_bytes(b"what a killed writer may leave")
        (tmp_path / "shards" / "notes.txt").write_text("not ours")
        cache.compact()
        assert cache.verify() == [] and cache.stats()["orphans"] == 0
        assert np.array_equal(cache.get_many(stored).vectors, encode(stored))
    assert [path.suffix for path in sorted((tmp_path / "shards").iterdir())] == [".npy", ".txt"]


def _write_shuffled(folder: Path, number: int) -> None:
    texts = [f"text {i}" for i in range(1500)]
    random.Random(number).shuffle(texts)
    size = [7, 31, 64, 200][number]
    with make(folder) as cache:
        for start in range(0, len(texts), size):
            batch = texts[start : start + size]
            got = cache.get_or_compute(batch, encode, batch_size=size)
            assert np.array_equal(got, encode(batch))
            if start % 5 == 0:
                cache.compact()


def test_four_writers_of_the_same_keys(tmp_path):
    children = [fork.Process(target=_write_shuffled, args=(tmp_path, number)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    texts = [f"text {i}" for i in range(1500)]
    with make(tmp_path) as cache:
        assert len(cache) == 1500 and cache.verify() == []
        assert np.array_equal(cache.get_many(texts).vectors, encode(texts))


def test_a_writer_that_waits_too_long_says_so(tmp_path, monkeypatch):
    filled(tmp_path)
    monkeypatch.setattr(_index, "WAIT_S", 0.05)
    with make(tmp_path) as cache:
        rival = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
        rival.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunFailed, match="another process kept the cache locked"):
            cache.put_many(["new"], encode(["new"]))
        assert cache.get_many(["text 1"]).found.all()  # readers do not wait
        rival.close()
        assert cache.put_many(["new"], encode(["new"])) == 1


# --------------------------------------------------------------- damaged files


class Exploit:
    """A pickle that would make a folder if it were ever loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


def truncate(folder: Path) -> None:
    os.truncate(only_shard(folder), only_shard(folder).stat().st_size - 3)


def remove(folder: Path) -> None:
    only_shard(folder).unlink()


def make_pickle(folder: Path) -> None:
    np.save(only_shard(folder), np.array([Exploit(folder / "exploited")], dtype=object), allow_pickle=True)


def make_text(folder: Path) -> None:
    only_shard(folder).write_text("no shard at all")


def widen(folder: Path) -> None:
    np.save(only_shard(folder), np.zeros((40, 2 * DIM), np.float16))


def climb(folder: Path) -> None:
    shutil.copy(only_shard(folder), folder / "outside.npy")
    edit(folder, "UPDATE shards SET name = '../outside.npy'")


def lose_shard(folder: Path) -> None:
    edit(folder, "UPDATE entries SET shard = 99")


def point_beyond(folder: Path) -> None:
    edit(folder, "UPDATE entries SET row = 40 WHERE row = 7")


def point_before(folder: Path) -> None:
    edit(folder, "UPDATE entries SET row = -1 WHERE row = 7")


DAMAGES = {
    truncate: r"has 445 bytes instead of 448",
    remove: "points to a shard that is missing",
    make_pickle: r"holds object \(1,\), the index says float16",
    make_text: "not a shard",
    widen: r"holds float16 \(40, 8\)",
    climb: "'../outside.npy' is not a shard's name",
    lose_shard: "the index has no shard 99",
    point_beyond: "points beyond a shard's end",
    point_before: "points beyond a shard's end",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damage_is_one_clear_error_and_can_be_repaired(tmp_path, damage):
    texts = filled(tmp_path)
    outside = sorted(tmp_path.parent.iterdir())
    damage(tmp_path)
    with make(tmp_path) as cache:
        with pytest.raises(UserError, match=DAMAGES[damage]) as error:
            cache.get_many(texts)
        assert "\n" not in str(error.value)
        faults = cache.verify()
        assert faults
        assert cache.verify(repair=True) == faults
        assert cache.verify() == []
        assert np.array_equal(cache.get_or_compute(texts, encode), encode(texts))
        cache.compact()
        assert cache.verify() == [] and len(cache) == 40
    assert not (tmp_path / "exploited").exists()
    assert sorted(tmp_path.parent.iterdir()) == outside
    assert (tmp_path / "outside.npy").exists() == (damage is climb)


def test_a_flipped_bit_is_found_and_not_copied(tmp_path):
    texts = filled(tmp_path, 80, shard_rows=40)
    with make(tmp_path) as cache:
        cache.put_many(["more"] * 1 + [f"more {i}" for i in range(40)], encode(["more"] * 41))
    path = sorted((tmp_path / "shards").glob("*.npy"))[0]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with make(tmp_path) as cache:
        (fault,) = cache.verify()
        assert (fault.where, fault.what) == (f"shards/{path.name}", "the checksum is wrong")
        with pytest.raises(UserError, match="the checksum is wrong"):
            cache.compact()
        assert fault.entries in (80, 41)
        cache.verify(repair=True)
        assert len(cache) == 121 - fault.entries and cache.verify() == []
        assert np.array_equal(cache.get_or_compute(texts, encode), encode(texts))


def test_values_that_are_not_finite_are_found_row_by_row(tmp_path):
    texts = filled(tmp_path)
    matrix = encode(texts).astype(np.float16)
    matrix[7, 2] = np.inf
    np.save(only_shard(tmp_path), matrix)
    edit(tmp_path, "UPDATE shards SET crc32 = ?", (zlib.crc32(matrix.tobytes()),))
    with make(tmp_path) as cache:
        (fault,) = cache.verify(repair=True)
        assert (fault.what, fault.entries) == ("values are not finite", 1)
        assert cache.verify() == []
        assert cache.get_many(texts).found.tolist() == [i != 7 for i in range(40)]


@pytest.mark.parametrize("value", [b"", b"123", np.full(DIM, np.nan, np.float16).tobytes()])
def test_damaged_pending_rows(tmp_path, value):
    texts = filled(tmp_path, 3)
    edit(tmp_path, "UPDATE pending SET value = ? WHERE id = 2", (value,))
    with make(tmp_path) as cache:
        (fault,) = cache.verify(repair=True)
        assert (fault.what, fault.entries) == ("pending rows of the wrong size or not finite", 1)
        assert cache.verify() == [] and len(cache) == 2
        assert np.array_equal(cache.get_or_compute(texts, encode), encode(texts))


def test_keys_that_point_to_the_rows_of_others_are_found_and_not_lost(tmp_path):
    texts = filled(tmp_path)
    edit(tmp_path, "UPDATE entries SET row = row + 1 WHERE row < 3")  # three of them, and two keys share row 3
    with make(tmp_path) as cache:
        more = [f"more {i}" for i in range(40)]
        cache.put_many(more, encode(more))  # a second shard: now there is something to merge
        with pytest.raises(UserError, match="rows of others"):
            cache.compact()
        faults = cache.verify()
        assert [fault.what for fault in faults] == ["keys point to the rows of others"]
        cache.verify(repair=True)
        assert cache.verify() == [] and len(cache) >= 76
        assert np.array_equal(cache.get_or_compute(texts, encode), encode(texts))


def test_counts_are_checked(tmp_path):
    filled(tmp_path)
    edit(tmp_path, "UPDATE state SET live = 7")
    with make(tmp_path) as cache:
        (fault,) = cache.verify(repair=True)
        assert fault.what == "counts of live rows are wrong"
        assert cache.verify() == []


def test_a_strangers_database_is_left_as_it_is(tmp_path):
    edit(tmp_path, "CREATE TABLE photos (a)")
    before = (tmp_path / "index.sqlite").read_bytes()
    with pytest.raises(UserError, match="not the index of a cache"), make(tmp_path):
        pass
    assert (tmp_path / "index.sqlite").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda index: index.write_bytes(b"not a database, but long enough to look like one" * 40), "index is damaged"),
        (lambda index: edit(index.parent, "DROP TABLE entries"), "not the index of a cache"),
        (lambda index: edit(index.parent, "CREATE VIEW more AS SELECT 1"), "not the index of a cache"),
        (lambda index: edit(index.parent, "UPDATE meta SET value = '{' WHERE name = 'fingerprint'"), "not JSON"),
        (lambda index: edit(index.parent, "UPDATE meta SET value = '2' WHERE name = 'format'"), "format is 2, not 1"),
        (lambda index: edit(index.parent, "UPDATE meta SET value = ?", ("[" * 10**5,)), "not JSON"),
    ],
)
def test_a_damaged_index_is_one_clear_error(tmp_path, spoil, named):
    texts = filled(tmp_path)
    spoil(tmp_path / "index.sqlite")
    with pytest.raises(UserError, match=named) as error, make(tmp_path) as cache:
        cache.get_many(texts)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def rewritten(folder: Path, old: bytes, new: bytes, which: int) -> None:
    """Change one of the places where the index's file says something."""
    edit(folder, "PRAGMA wal_checkpoint(TRUNCATE)")
    parts = (folder / "index.sqlite").read_bytes().split(old)
    (folder / "index.sqlite").write_bytes(old.join(parts[: which + 1]) + new + old.join(parts[which + 1 :]))


def test_a_schema_that_is_no_text_is_one_clear_error(tmp_path):
    texts = filled(tmp_path)
    rewritten(tmp_path, b"CREATE TABLE state", b"CREATE T\xff\xfeLE state", 0)
    with pytest.raises(UserError, match="the index is damaged") as error, make(tmp_path) as cache:
        cache.get_many(texts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("which", [0, 1])  # the row's own place, and the place where names are looked up
def test_an_index_that_contradicts_itself_is_not_looked_up_for_ever(tmp_path, which):
    texts = filled(tmp_path)
    name = only_shard(tmp_path).name.encode()
    rewritten(tmp_path, name, name[:3] + bytes([name[3] ^ 1]) + name[4:], which)
    only_shard(tmp_path).rename(tmp_path / "elsewhere")
    signal.alarm(60)  # ends the tests, where it would hang
    with make(tmp_path) as cache:
        for ask in (lambda: cache.get_many(texts), cache.verify):
            with pytest.raises(UserError, match="shard that is missing|index is damaged"):
                ask()
    signal.alarm(0)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot make the cache's folder"):
            make(folder)


# ------------------------------------------------------------------- the disk


def _in_child(work) -> str:
    """Run work in a forked process and return what it prints of its error."""
    reading, writing = os.pipe()

    def run() -> None:
        os.close(reading)
        try:
            work()
            text = "no error"
        except UserError as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode())

    child = fork.Process(target=run)
    child.start()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    child.join()
    assert child.exitcode == 0
    return said


@pytest.mark.parametrize("rows", [20, 20_000])  # through the index, and as a shard
def test_a_full_disk_is_one_line_and_keeps_what_was_stored(tmp_path, rows):
    stored = filled(tmp_path)

    def fill() -> None:
        limit = 66_000 if rows > 32 else 30_000  # bytes that one file may have
        with make(tmp_path) as cache:
            cache.get_many(stored)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            for i in range(40):
                texts = [f"{i} {j}" for j in range(rows)]
                cache.put_many(texts, encode(texts))

    assert _in_child(fill).startswith("RunFailed: ")
    assert "disk is full" in _in_child(fill)
    with make(tmp_path) as cache:
        assert cache.verify() == [] and cache.stats()["orphans"] == 0
        assert np.array_equal(cache.get_many(stored).vectors, encode(stored))
    assert not list((tmp_path / "shards").glob(".*"))


def test_a_folder_that_cannot_be_written():
    # Not tmp_path: another user must be able to walk there.
    folder = Path(tempfile.mkdtemp())
    texts = filled(folder / "cache")
    for path in (folder, folder / "cache", folder / "cache" / "shards"):
        path.chmod(0o555)
    (folder / "cache" / "index.sqlite").chmod(0o444)

    def as_somebody_else() -> None:
        if os.getuid() == 0:  # root may write anywhere
            os.setgid(65534)
            os.setuid(65534)
        with make(folder / "cache", read_only=True) as cache:
            assert np.array_equal(cache.get_many(texts).vectors, encode(texts))
        with make(folder / "cache") as cache:
            cache.put_many(["new"], encode(["new"]))

    try:
        said = _in_child(as_somebody_else)
    finally:
        for path in (folder, folder / "cache", folder / "cache" / "shards"):
            path.chmod(0o755)
        shutil.rmtree(folder)
    assert "the cache cannot be written here" in said and "Open it with read_only" in said


def test_opening_and_reading_do_not_wait_for_a_writer(tmp_path, monkeypatch):
    texts = filled(tmp_path)
    monkeypatch.setattr(_index, "WAIT_S", 0.05)
    rival = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    with make(tmp_path) as cache:
        assert cache.get_many(texts).found.all() and cache.verify() == []
    rival.close()


def test_many_small_shards_are_merged_before_file_handles_run_out(tmp_path):
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        with make(tmp_path, shard_rows=1) as cache:
            texts = [f"text {i}" for i in range(400)]
            for text in texts:
                cache.put_many([text], encode([text]))
            assert np.array_equal(cache.get_many(texts).vectors, encode(texts))
            assert cache.stats()["shards"] <= 129

    assert _in_child(fill) == "no error"


def test_readers_meet_compaction_at_any_moment(tmp_path):
    texts = [f"text {i}" for i in range(300)]

    def churn() -> None:
        with make(tmp_path, shard_rows=5) as cache:
            for start in range(0, 300, 5):
                cache.put_many(texts[start : start + 5], encode(texts[start : start + 5]))
                if start % 15 == 0:
                    cache.compact()

    child = fork.Process(target=churn)
    child.start()
    with make(tmp_path) as cache:
        while child.is_alive():
            vectors, found = cache.get_many(texts)
            assert np.array_equal(vectors[found], encode(texts)[found])
            there = cache.as_matrix()
            assert np.array_equal(there, encode(texts[: len(there)]))
            assert cache.verify() == []
        child.join()
        assert child.exitcode == 0 and np.array_equal(cache.as_matrix(texts), encode(texts))
