"""Files from strangers: bombs, pickles, paths that leave their folder, damage; each is read or refused in one line."""

import gzip
import io
import json
import pickle
import sqlite3
import struct
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest

from latentlab_shared.config import load_config
from latentlab_shared.embeddings import EmbeddingCache, Fingerprint, open_cache
from latentlab_shared.encoders import LsaEncoder
from latentlab_shared.errors import UserError
from latentlab_shared.files import read_json

READERS = fuzz.all_readers()


class Seen:
    """Marks a file of its own when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return _touch, (str(self.path), "x")


def _touch(path: str, text: str) -> None:
    Path(path).write_text(text)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    faults = [fault for _, fault in fuzz.fuzz(READERS[name], tmp_path, seconds=0.05, seed=7)]
    assert len(faults) >= 10 and set(faults) == {None}


def test_every_reader_was_given_its_five_minutes() -> None:
    rows = {row["name"]: row["metrics"] for row in read_json(Path(__file__).parent / "results" / "fuzz.json")["rows"]}
    assert rows.keys() == READERS.keys(), "run make fuzz READER=..., and add its rows to tests/results/fuzz.json"
    assert all(row["seconds"] >= 300 and row["findings"] == 0 and row["files"] > 10_000 for row in rows.values())


def write(reader: fuzz.Reader, folder: Path, content: bytes) -> None:
    (folder / reader.name).parent.mkdir(parents=True, exist_ok=True)
    reader.prepare(folder)
    (folder / reader.name).write_bytes(content)


@pytest.mark.parametrize("name", [n for n, r in READERS.items() if r.name.endswith((".json", ".jsonl", ".jsonl.gz"))])
def test_deep_json_is_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    for deep in (b"[" * 200_000, b'{"a":' * 200_000, b'{"text": ' + b"[" * 200_000, b"9" * 10_000):
        write(reader, tmp_path, gzip.compress(deep) if reader.packed else deep)
        if name == "shared-metrics":  # a line that cannot be read was torn by a kill
            reader.read(tmp_path)
            continue
        with pytest.raises(UserError):
            reader.read(tmp_path)


@pytest.mark.parametrize("name", [n for n, r in READERS.items() if r.packed])
def test_gzip_bombs_are_refused_before_they_are_unpacked(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    with tempfile.SpooledTemporaryFile() as packed:
        with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as stream:
            for _ in range(100):
                stream.write(b"a" * 2**20)
        packed.seek(0)
        bomb = packed.read()
    assert len(bomb) < 2**20
    write(reader, tmp_path, bomb)
    began = time.process_time()
    with pytest.raises(UserError, match="when unpacked|longer than"):
        reader.read(tmp_path)
    assert time.process_time() - began < 10


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    reader = READERS["nrms-archive"]
    with zipfile.ZipFile(tmp_path / reader.name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as held:
        held.writestr("MIND/news.tsv", b"a" * (64 * 2**20))
        held.writestr("MIND/behaviors.tsv", b"b")
    with pytest.raises(UserError, match="is too large"):
        reader.read(tmp_path)
    assert not (tmp_path / "out" / "news.tsv").exists()


def test_a_configuration_that_multiplies_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    from nrms.config import NrmsConfig

    for text, match in (
        ("\n".join(lines), "aliases"),
        ("[" * 5000, "YAML"),
        ("a: " + "x" * 300_000, "too large"),
        ("!!python/object/apply:os.system ['exit 1']", "YAML"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=match):
            load_config(NrmsConfig, tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "member", ["../../out.story", "/tmp/latentlab-out.story", "a/../../out.story", "..\\out.story"]
)
def test_archives_write_nothing_outside_their_folder(member: str, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo(member)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"text"))
    (inside / "a.tgz").write_bytes(gzip.compress(packed.getvalue()))
    with pytest.raises(UserError, match="leaves the archive"):
        READERS["rsr_net-archive"].read(inside)
    with zipfile.ZipFile(inside / "a.zip", "w") as held:
        for name in ("news.tsv", "behaviors.tsv"):
            held.writestr(str(Path(member).parent / name), "x")
    READERS["nrms-archive"].read(inside)  # the two names are looked for; where they claim to lie is not followed
    outside = {p.name for p in tmp_path.rglob("*") if p.is_file() and inside not in p.parents}
    assert outside == set() and {p.name for p in (inside / "out").iterdir()} == {"news.tsv", "behaviors.tsv"}


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo("a.story")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(packed.getvalue()))
    with pytest.raises(UserError, match="link"):
        READERS["rsr_net-archive"].read(tmp_path)


@pytest.mark.parametrize("name", ["../../mine.npy", "{folder}/mine.npy"])
def test_a_cache_follows_no_path_out_of_its_folder(name: str, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(8)]
    with EmbeddingCache(tmp_path / "cache", Fingerprint("tiny", "a" * 64), 4, shard_rows=8) as made:
        made.put_many(texts, np.ones((8, 4), np.float32))
    (shard,) = (tmp_path / "cache" / "shards").glob("*.npy")
    content = shard.read_bytes()
    (tmp_path / "mine.npy").write_bytes(content)
    with sqlite3.connect(tmp_path / "cache" / "index.sqlite") as db:
        db.execute("UPDATE shards SET name = ?", (name.format(folder=tmp_path),))
    db.close()
    with pytest.raises(UserError, match="is not a shard's name"), open_cache(tmp_path / "cache") as opened:
        assert isinstance(opened, EmbeddingCache)
        opened.get_many(texts)
    with open_cache(tmp_path / "cache", read_only=False) as opened:
        opened.verify(repair=True)
        opened.compact()
    assert (tmp_path / "mine.npy").read_bytes() == content


def headers() -> list[bytes]:
    """Safetensors files whose header is a trap."""
    huge = json.dumps({"components": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}).encode()
    overlap = json.dumps({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in ("components", "idf")})
    far = json.dumps({"components": {"dtype": "F32", "shape": [4], "data_offsets": [2**62, 2**62 + 16]}}).encode()
    deep = b'{"a":' * 100_000
    found = [struct.pack("<Q", size) + b"{}" for size in (2**63, 2**32, 100_000_001, 3)]
    return [*found, *(struct.pack("<Q", len(h)) + h + bytes(16) for h in (huge, overlap.encode(), far, deep, b"\xff"))]


@pytest.mark.parametrize("number", range(9))
def test_headers_of_tensor_files_are_not_believed(number: int, tmp_path: Path) -> None:
    content = headers()[number]
    for name in ("shared-lsa-weights", "shared-cache-import"):
        write(READERS[name], tmp_path / name, content)
        with pytest.raises(UserError):
            READERS[name].read(tmp_path / name)


def pickled(folder: Path) -> dict[str, bytes]:
    """The same trap as a pickle, as NumPy's, and with the magic of a zip."""
    array = io.BytesIO()
    np.save(array, np.array([Seen(folder / "ran")], dtype=object), allow_pickle=True)
    return {"pickle": pickle.dumps(Seen(folder / "ran")), "numpy": array.getvalue()}


@pytest.mark.parametrize("kind", ["pickle", "numpy"])
def test_no_reader_unpickles(kind: str, tmp_path: Path) -> None:
    trap = pickled(tmp_path)[kind]
    for name, reader in READERS.items():
        (tmp_path / name).mkdir()
        fault = None
        write(reader, tmp_path / name, trap)
        fault = fuzz.one_file(reader, tmp_path / name, trap)
        assert fault is None, (name, fault)
        assert not (tmp_path / "ran").exists(), name
    assert pickle.loads(pickled(tmp_path)["pickle"]) is None and (tmp_path / "ran").exists(), "the trap works"


def test_read_json_and_lsa_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    for call in (lambda: read_json(tmp_path / "a.json"), lambda: LsaEncoder.load(tmp_path / "none")):
        with pytest.raises(UserError, match=str(tmp_path)):
            call()
