"""Embedding a corpus on several ranks: equal to one process, resumable, checked when merged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest

from latentlab_shared.embeddings import EmbeddingCache, Fingerprint, TokenEmbeddingCache
from latentlab_shared.errors import UserError
from latentlab_shared.precompute import merge, precompute, rank_and_world

FINGERPRINT = Fingerprint("letters", "a" * 64)
TEXTS = [f"text {i % 90} {'x' * (i % 7)}" for i in range(120)]  # some come twice
DISTINCT = list(dict.fromkeys(TEXTS))

# The program that each rank runs; it writes a line per batch so that the test sees who did what.
PROGRAM = """
import os, sys, time
import numpy as np
from latentlab_shared.embeddings import Fingerprint
from latentlab_shared.precompute import precompute

out, log, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
texts = [f"text {i % 90} {'x' * (i % 7)}" for i in range(120)]

def encode(batch):
    with open(f"{log}.{os.environ.get('RANK', '0')}", "a") as file:
        file.writelines(text + "\\n" for text in batch)
    time.sleep(pause)
    return np.array([[len(t), t.count("x"), t.count("1"), sum(map(ord, t)) % 97] for t in batch], dtype=float)

precompute(texts, encode, out, Fingerprint("letters", "a" * 64), dim=4, batch_size=3, part_rows=8)
"""


def encode(batch: list[str]) -> np.ndarray:
    return np.array([[len(t), t.count("x"), t.count("1"), sum(map(ord, t)) % 97] for t in batch], dtype=float)


def never(batch: list[str]) -> np.ndarray:
    raise AssertionError(f"{batch} were embedded again")


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def program(tmp_path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def start(program: Path, out: str, rank: int, world: int, pause: float = 0.0) -> subprocess.Popen:
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world)}
    command = [sys.executable, str(program), out, str(program.parent / "log"), str(pause)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def logged(program: Path) -> list[list[str]]:
    return [path.read_text().splitlines() for path in sorted(program.parent.glob("log.*"))]


def check_merged(out: str, folder: Path) -> None:
    with EmbeddingCache(folder, FINGERPRINT, 4) as cache:
        assert merge(out, cache) == len(DISTINCT)
        assert merge(out, cache) == 0
        assert np.array_equal(cache.get_many(TEXTS).vectors, encode(TEXTS))
        cache.compact()
        assert np.array_equal(cache.as_matrix(DISTINCT), encode(DISTINCT))
        assert isinstance(cache.as_matrix(DISTINCT), np.memmap)  # parts are loaded in the order of the corpus
        assert cache.verify() == []


def test_two_processes_share_the_work(tmp_path, program):
    out = (tmp_path / "parts").as_uri()  # file://, through fsspec
    ranks = [start(program, out, rank, 2) for rank in range(2)]
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.stderr.read() for rank in ranks]
    first, second = logged(program)
    assert sorted(first + second) == sorted(DISTINCT) and first and second
    assert sorted(path.name for path in (tmp_path / "parts").glob("manifest*")) == [
        "manifest-00000.json",
        "manifest-00001.json",
    ]
    assert not [path for path in (tmp_path / "parts").iterdir() if path.name.startswith(".")]
    check_merged(out, tmp_path / "cache")


@pytest.mark.slow
def test_torchrun(tmp_path, program):
    out = str(tmp_path / "parts")
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [torchrun, "--standalone", "--nproc_per_node=2", program, out, tmp_path / "log", "0"]
    subprocess.run([str(part) for part in command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert [len(lines) > 0 for lines in logged(program)] == [True, True]
    check_merged(out, tmp_path / "cache")


def test_a_killed_rank_goes_on_where_it_was(tmp_path, program):
    out = tmp_path / "parts"
    rank = start(program, str(out), 0, 1, pause=0.02)
    deadline = time.monotonic() + 60
    while len(list(out.glob("part-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    rank.send_signal(signal.SIGKILL)
    assert rank.wait() == -signal.SIGKILL
    manifest = json.loads((out / "manifest-00000.json").read_text())
    kept = sum(entry["texts"] for entry in manifest["parts"].values())
    assert 16 <= kept < len(DISTINCT)
    with EmbeddingCache(tmp_path / "early", FINGERPRINT, 4) as cache:
        with pytest.raises(UserError, match=r"of 15 parts are not done \(part-0000"):
            merge(out, cache)
        assert len(cache) == 0
    # Another number of ranks goes on with what is there.
    ranks = [start(program, str(out), number, 2) for number in range(2)]
    assert [rank.wait() for rank in ranks] == [0, 0]
    embedded = [text for lines in logged(program) for text in lines]
    assert len(embedded) <= len(DISTINCT) + 8  # at most the part in hand was embedded twice
    check_merged(str(out), tmp_path / "cache")


def test_memory_file_system_and_nothing_is_done_twice():
    out = f"memory://{uuid.uuid4().hex}/parts"
    assert precompute(TEXTS, encode, out, FINGERPRINT, dim=4, part_rows=50) == len(DISTINCT)
    assert precompute(TEXTS, never, out, FINGERPRINT, dim=4, part_rows=50) == 0
    names = fsspec.filesystem("memory").ls(out.removeprefix("memory:/"), detail=False)
    assert len(names) == 4 and not any(".tmp" in name for name in names)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_parts_hold_the_bits_that_a_cache_would(tmp_path, dtype):
    def noisy(batch: list[str]) -> np.ndarray:
        return np.stack([np.random.default_rng(len(t)).standard_normal(4) for t in batch])

    precompute(TEXTS, noisy, tmp_path / "parts", FINGERPRINT, dim=4, dtype=dtype, part_rows=7)
    with (
        EmbeddingCache(tmp_path / "merged", FINGERPRINT, 4, dtype) as merged,
        EmbeddingCache(tmp_path / "direct", FINGERPRINT, 4, dtype) as direct,
    ):
        merge(tmp_path / "parts", merged)
        assert np.array_equal(direct.get_or_compute(TEXTS, noisy), merged.get_many(TEXTS).vectors)


def test_token_embeddings(tmp_path):
    def encode_tokens(batch: list[str]) -> list[np.ndarray]:
        return [np.outer(np.arange(1, len(t) + 1), [1, 2, 3, 4]) for t in batch]

    precompute(TEXTS, encode_tokens, tmp_path / "parts", FINGERPRINT, dim=4, tokens=True, part_rows=7)
    with TokenEmbeddingCache(tmp_path / "cache", FINGERPRINT, 4) as cache:
        merge(tmp_path / "parts", cache)
        for got, expected in zip(cache.get_many(TEXTS), encode_tokens(TEXTS), strict=True):
            assert np.array_equal(got, expected)


@pytest.fixture
def parts(tmp_path) -> Path:
    precompute(TEXTS, encode, tmp_path / "parts", FINGERPRINT, dim=4, part_rows=40)
    return tmp_path / "parts"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"texts": TEXTS[:-1] + ["other"]}, "corpus is"),
        ({"fingerprint": Fingerprint("letters", "b" * 64)}, "fingerprint.weights_sha256 is"),
        ({"dim": 5}, "dim is 4, not 5"),
        ({"part_rows": 30}, "part_rows is 40, not 30"),
    ],
)
def test_parts_of_something_else_are_refused_by_name(parts, options, named):
    given = {"texts": TEXTS, "fingerprint": FINGERPRINT, "dim": 4, "part_rows": 40} | options
    before = sorted(parts.iterdir())
    with pytest.raises(UserError, match=named):
        precompute(given.pop("texts"), never, parts, given.pop("fingerprint"), **given)
    assert sorted(parts.iterdir()) == before


def test_a_merge_checks_before_it_loads(tmp_path, parts):
    damaged = parts / "part-000002.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with EmbeddingCache(tmp_path / "cache", FINGERPRINT, 4) as cache:
        with pytest.raises(UserError, match="part-000002.safetensors: the part is damaged"):
            merge(parts, cache)
        assert len(cache) == 0
        damaged.unlink()  # as the message says
        assert precompute(TEXTS, encode, parts, FINGERPRINT, dim=4, part_rows=40) == len(DISTINCT) - 80
        assert merge(parts, cache) == len(DISTINCT)
    with (
        EmbeddingCache(tmp_path / "other", Fingerprint("letters", "b" * 64), 4) as cache,
        pytest.raises(UserError, match=r"else: fingerprint\.weights_sha256 is \S+ not \S+ Use"),
    ):
        merge(parts, cache)
    with EmbeddingCache(tmp_path / "cache", FINGERPRINT, 4) as cache, pytest.raises(UserError, match="no manifests"):
        merge(tmp_path / "empty", cache)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"parts": {"../x": {"sha256": "a"}}, "texts": 1, "part_rows": 1}']
)
def test_a_damaged_manifest_is_named(parts, content):
    (parts / "manifest-00000.json").write_text(content)
    with pytest.raises(UserError, match="manifest-00000.json: not a manifest"):
        precompute(TEXTS, never, parts, FINGERPRINT, dim=4, part_rows=40)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("0", "0"), ("-1", "2")])
def test_ranks_that_cannot_be(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UserError, match=f"RANK={rank} and WORLD_SIZE={world} do not fit"):
        rank_and_world()


def test_a_url_of_no_file_system():
    with pytest.raises(UserError, match="no file system for this URL"):
        precompute(TEXTS, never, "nosuch://x", FINGERPRINT, dim=4)
