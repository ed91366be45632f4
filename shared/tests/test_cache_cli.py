"""``latentlab-cache`` as a command: every verb, its exit codes, and files that are not what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from latentlab_shared.embeddings import EmbeddingCache, Fingerprint, TokenEmbeddingCache, open_cache
from latentlab_shared.errors import UserError

FINGERPRINT = Fingerprint("tiny", "a" * 64)
DIM = 4
TEXTS = [f"text {i}" for i in range(30)]
VECTORS = np.random.default_rng(0).standard_normal((30, DIM)).astype(np.float32)
LENGTHS = [1 + i % 5 for i in range(30)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from latentlab_shared.cache_cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def ok(*arguments: object) -> dict:
    done = run(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def fails(code: int, *arguments: object) -> str:
    done = run(*arguments)
    assert done.returncode == code, done
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(("error: ", "failed: "))
    return done.stderr


def make(folder: Path, dtype: str = "float16", tokens: bool = False) -> Path:
    kind = TokenEmbeddingCache if tokens else EmbeddingCache
    with kind(folder, FINGERPRINT, DIM, dtype, shard_rows=8) as cache:
        for start in range(0, 30, 10):
            span = slice(start, start + 10)
            matrices = [np.tile(v, (n, 1)) for v, n in zip(VECTORS[span], LENGTHS[span], strict=True)]
            cache.put_many(TEXTS[span], matrices if tokens else VECTORS[span])
        cache.put_many(["last"], [VECTORS[:2]] if tokens else VECTORS[:1])  # pending
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("cache") / "c")


def test_stats_and_help(cache):
    found = ok("stats", cache)
    assert (found["entries"], found["pending"], found["shards"]) == (31, 1, 3)
    assert found["fingerprint"]["weights_sha256"] == "a" * 64
    text = run("stats", cache)
    assert "fingerprint.pooling" in text.stdout and text.stderr == ""
    assert re.fullmatch(r"latentlab-cache \d+\.\d+\.\d+\n", run("--version").stdout)
    for verb in ("stats", "verify", "compact", "export", "import", "bench"):
        assert verb in run("--help").stdout


def test_verify_repair_and_compact(tmp_path):
    folder = make(tmp_path / "c")
    assert ok("verify", folder) == {"ok": True, "repaired": False, "entries": 31, "faults": []}
    shard = sorted((folder / "shards").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    done = run("verify", folder)
    assert done.returncode == 1
    assert done.stdout == f"shards/{shard.name}: the checksum is wrong (10 entries)\n"
    assert done.stderr.endswith("the cache has 1 faults. Run: latentlab-cache verify --repair\n")
    assert "the checksum is wrong" in fails(2, "compact", folder)
    assert ok("verify", folder, "--repair")["entries"] == 21
    assert ok("verify", folder)["ok"]
    assert ok("compact", folder)["compacted"]["shards_after"] == 1
    assert "1 -> 1 shards" in run("compact", folder).stdout


@pytest.mark.parametrize("suffix", ["parquet", "safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("tokens", [False, True])
def test_export_and_import_keep_every_bit(tmp_path, suffix, dtype, tokens):
    original = make(tmp_path / "a", dtype, tokens)
    with open_cache(original) as a:
        file = tmp_path / f"all.{suffix}"
        assert a.export_to(file) == 31
        with type(a)(tmp_path / "b", FINGERPRINT, DIM, dtype) as b:
            assert b.import_from(file) == 31 and b.import_from(file) == 0
            assert b.verify() == []
            found, copied = a.get_many([*TEXTS, "last"]), b.get_many([*TEXTS, "last"])
            for one, other in zip(
                found if tokens else found.vectors, copied if tokens else copied.vectors, strict=True
            ):
                assert one.tobytes() == other.tobytes()


def test_exported_files_are_what_other_tools_read(tmp_path, cache):
    assert ok("export", cache, tmp_path / "x.parquet")["entries"] == 31
    read = pq.read_table(tmp_path / "x.parquet")
    assert np.array_equal(np.stack(read["vector"].to_numpy())[:30], VECTORS.astype(np.float16))
    assert json.loads(read.schema.metadata[b"latentlab.cache"])["fingerprint"]["encoder"] == "tiny"
    assert ok("export", cache, tmp_path / "x.safetensors")["entries"] == 31
    assert np.array_equal(load_file(tmp_path / "x.safetensors")["vectors"][:30], VECTORS.astype(np.float16))
    assert ok("import", tmp_path / "x.parquet", tmp_path / "copy") == {"new": 31, "entries": 31}
    assert ok("import", tmp_path / "x.safetensors", tmp_path / "copy") == {"new": 0, "entries": 31}
    assert ok("stats", tmp_path / "copy")["digest"] == ok("stats", cache)["digest"]


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, cache):
    assert "there is no cache here" in fails(2, "stats", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    assert "there is no such file" in fails(2, "import", tmp_path / "absent.parquet", tmp_path / "c")
    assert "neither Parquet nor safetensors" in fails(2, "export", cache, tmp_path / "x.csv")
    (tmp_path / "x.parquet").write_text("no")
    assert "not a Parquet file" in fails(2, "import", tmp_path / "x.parquet", tmp_path / "c")
    (tmp_path / "x.safetensors").write_text("no")
    assert "not a safetensors file" in fails(2, "import", tmp_path / "x.safetensors", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    other = EmbeddingCache(tmp_path / "other", Fingerprint("other", "b" * 64), DIM)
    other.close()
    ok("export", cache, tmp_path / "y.parquet")
    said = fails(2, "import", tmp_path / "y.parquet", tmp_path / "other")
    assert 'fingerprint.encoder is "other", not "tiny"' in said
    assert "Try: latentlab-cache" in fails(2, "stats")


def identity() -> str:
    return json.dumps(
        {"format": 1, "layout": "vectors", "dim": DIM, "dtype": "float16", "fingerprint": FINGERPRINT.as_dict()}
    )


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"keys": np.zeros((2, 15), np.uint8), "vectors": np.zeros((2, DIM), np.float16)}, "do not fit"),
        ({"keys": np.zeros((3, 16), np.uint8), "vectors": np.zeros((2, DIM), np.float16)}, "do not fit"),
        ({"keys": np.zeros((2, 16), np.uint8), "vectors": np.zeros((2, DIM), np.float32)}, "do not fit"),
        ({"keys": np.zeros((2, 16), np.uint8), "vectors": np.full((2, DIM), np.inf, np.float16)}, "not finite"),
        ({"vectors": np.zeros((2, DIM), np.float16)}, "do not fit"),
    ],
)
def test_a_safetensors_file_is_not_trusted(tmp_path, tensors, named):
    save_file(tensors, tmp_path / "x.safetensors", metadata={"latentlab.cache": identity()})
    with EmbeddingCache(tmp_path / "c", FINGERPRINT, DIM) as opened:
        with pytest.raises(UserError, match=named):
            opened.import_from(tmp_path / "x.safetensors")
        assert len(opened) == 0


@pytest.mark.parametrize(
    ("columns", "metadata", "named"),
    [
        ({"key": pa.array([b"x" * 16], pa.binary(16))}, True, "its columns do not fit"),
        (
            {"key": pa.array([b"x" * 16], pa.binary(16)), "vector": pa.array([None], pa.list_(pa.float16(), DIM))},
            True,
            "has gaps",
        ),
        (
            {
                "key": pa.array([b"x" * 16], pa.binary(16)),
                "vector": pa.array([[np.float16(1), None, np.float16(1), np.float16(1)]], pa.list_(pa.float16(), DIM)),
            },
            True,
            "not finite|has gaps",
        ),
        ({"key": pa.array([b"x" * 16], pa.binary(16))}, False, "does not say which cache"),
    ],
)
def test_a_parquet_file_is_not_trusted(tmp_path, columns, metadata, named):
    table = pa.table(columns).replace_schema_metadata({"latentlab.cache": identity()} if metadata else None)
    pq.write_table(table, tmp_path / "x.parquet")
    with EmbeddingCache(tmp_path / "c", FINGERPRINT, DIM) as opened:
        with pytest.raises(UserError, match=named):
            opened.import_from(tmp_path / "x.parquet")
        assert len(opened) == 0


def test_bench_prints_one_object_and_writes_the_table(tmp_path):
    output = tmp_path / "cache.json"
    found = ok("bench", "--rows", 400, "--dim", 8, "--repeats", 1, "--folder", tmp_path, "--output", output)
    assert list(found) == ["results"]
    assert all(set(r) == {"name", "value", "unit", "against", "target", "ok"} for r in found["results"])
    assert all(r["value"] > 0 and (r["ok"] is None) == (r["target"] is None) for r in found["results"])
    assert {r["name"]: r["target"] for r in found["results"] if r["target"]} == {
        "write_wall_speedup": ">=5",
        "read_cold_wall_speedup": ">=2",
        "write_wall_speedup_plain": ">=5",
        "read_cold_wall_speedup_plain": ">=2",
        "scan_cold_wall_slowdown": "<=2.5",
        "scan_warm_wall_slowdown": "<=2.5",
    }
    table = json.loads(output.read_text())
    stores = ["latentlab", "lmdb", "sqlite", "lmdb, plain", "sqlite, plain", "files", "arrow", "memmap"]
    assert [row["name"] for row in table["rows"]] == stores
    assert {"command", "data", "commit", "date", "machine", "seeds", "rows"} <= set(table)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]
