"""The embedding cache against a dictionary: what it keeps, what it computes, and what it refuses to mix."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import pty
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from latentlab_shared._shards import Codec
from latentlab_shared.embeddings import EmbeddingCache, Fingerprint, TokenEmbeddingCache
from latentlab_shared.errors import UserError

FINGERPRINT = Fingerprint("tiny", "a" * 64)
DIM = 4


def vector(text: object) -> np.ndarray:
    """The one vector of a text, exact in float16."""
    return np.random.default_rng(zlib.crc32(repr(text).encode())).integers(-8, 9, DIM).astype(np.float32)


def encode(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def make(folder: Path, **options) -> EmbeddingCache:
    return EmbeddingCache(folder, options.pop("fingerprint", FINGERPRINT), DIM, **options)


class Oracle:
    """A dictionary with the same rule of eviction, written the slow way."""

    def __init__(self, max_rows: int | None) -> None:
        self.rows: dict[bytes, tuple[int, np.ndarray]] = {}
        self.clock, self.max_rows = 0, max_rows

    def get(self, keys: list[bytes]) -> list[np.ndarray | None]:
        values = [self.rows[key][1] if key in self.rows else None for key in keys]
        hit = [key for key in keys if key in self.rows]
        if hit and self.max_rows is not None:
            for key in hit:
                self.rows[key] = (self.clock, self.rows[key][1])
            self.clock += 1
        return values

    def put(self, keys: list[bytes], values: list[np.ndarray]) -> int:
        new = 0
        for key, value in zip(keys, values, strict=True):
            if key not in self.rows:
                self.rows[key] = (self.clock, value)
                new += 1
        self.clock += new > 0
        if new and self.max_rows is not None and len(self.rows) > self.max_rows:
            excess = len(self.rows) - int(self.max_rows * 2 * DIM * 0.9) // (2 * DIM)
            for key in sorted(self.rows, key=lambda k: (self.rows[k][0], k))[:excess]:
                del self.rows[key]
        return new


TEXTS = st.lists(
    st.one_of(
        st.integers(0, 60).map(lambda i: f"text {i}"), st.text(max_size=3), st.lists(st.integers(0, 3), max_size=3)
    ),
    max_size=14,
)


class AgainstDictionary(RuleBasedStateMachine):
    """put, get, compute, compact and reopen, in any order."""

    max_rows: int | None = None

    @initialize(shard_rows=st.sampled_from([1, 5, 9, 1000]))
    def start(self, shard_rows: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        max_bytes = None if self.max_rows is None else self.max_rows * 2 * DIM
        self.options = {"shard_rows": shard_rows, "max_bytes": max_bytes}
        self.cache, self.oracle = make(self.folder, **self.options), Oracle(self.max_rows)

    def keys(self, texts: list[str]) -> list[bytes]:
        return [key.tobytes() for key in self.cache.keys(texts)]

    @rule(texts=TEXTS)
    def put(self, texts: list[str]) -> None:
        # A later vector of the same text must not be kept: number them.
        values = [vector(text) + n for n, text in enumerate(texts)]
        new = self.cache.put_many(texts, np.array(values).reshape(-1, DIM))
        assert new == self.oracle.put(self.keys(texts), values)

    @rule(texts=TEXTS)
    def get(self, texts: list[str]) -> None:
        found = self.cache.get_many(texts)
        for row, there, expected in zip(*found, self.oracle.get(self.keys(texts)), strict=True):
            assert there == (expected is not None)
            assert np.array_equal(row, expected) if there else np.isnan(row).all()

    @precondition(lambda self: self.max_rows is None)
    @rule(texts=TEXTS, batch_size=st.integers(1, 5))
    def compute(self, texts: list[str], batch_size: int) -> None:
        expected = [
            vector(t) if v is None else v for t, v in zip(texts, self.oracle.get(self.keys(texts)), strict=True)
        ]
        rows = self.cache.get_or_compute(texts, encode, batch_size=batch_size)
        assert np.array_equal(rows, np.array(expected).reshape(-1, DIM))
        self.oracle.put(self.keys(texts), expected)

    @rule()
    def compact(self) -> None:
        self.cache.compact()
        stats = self.cache.stats()
        assert stats["shards"] <= 1 and stats["dead"] == stats["orphans"] == stats["pending"] == 0

    @rule()
    def reopen(self) -> None:
        self.cache.close()
        self.cache = make(self.folder, **self.options)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "cache"):
            return
        assert len(self.cache) == len(self.oracle.rows)
        stored = {k.tobytes(): v for keys, rows in self.cache.chunks() for k, v in zip(keys, rows, strict=True)}
        assert stored.keys() == self.oracle.rows.keys()
        assert all(np.array_equal(stored[key], value) for key, (_, value) in self.oracle.rows.items())
        assert self.cache.as_matrix().shape == (len(stored), DIM)

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.verify() == []
            self.cache.close()
            shutil.rmtree(self.folder)


class EvictingAgainstDictionary(AgainstDictionary):
    max_rows = 12


few = settings(max_examples=25, stateful_step_count=14, deadline=None)
TestDictionary = AgainstDictionary.TestCase
TestDictionary.settings = few
TestEviction = EvictingAgainstDictionary.TestCase
TestEviction.settings = few


@settings(max_examples=25, deadline=None)
@given(
    puts=st.lists(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), max_size=6), max_size=6),
    dtype=st.sampled_from(["float16", "float32", "int8"]),
    shard_rows=st.sampled_from([1, 6, 1000]),
)
def test_token_cache_against_a_dictionary(puts, dtype, shard_rows):
    oracle: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = TokenEmbeddingCache(folder, FINGERPRINT, DIM, dtype, shard_rows=shard_rows)
        for put in puts:
            texts = [f"t{i}" for i, _ in put]
            # Rows of 0 and ±127 survive int8 exactly.
            matrices = [127.0 * np.sign(np.arange(n * DIM).reshape(n, DIM) % 3 - 1.0 + (i % 2)) for i, n in put]
            cache.put_many(texts, matrices)
            for text, matrix in zip(texts, matrices, strict=True):
                oracle.setdefault(text, matrix)
            asked = [f"t{i}" for i in range(20, -1, -1)] + ["t3"]
            for text, got in zip(asked, cache.get_many(asked), strict=True):
                assert np.array_equal(got, oracle[text]) if text in oracle else got is None
            if len(put) % 2:
                cache.compact()
        keys = [key.tobytes() for part, _ in cache.chunks() for key in part]
        assert len(keys) == len(set(keys)) == len(cache) == len(oracle)
        assert cache.stats()["vectors"] == sum(map(len, oracle.values()))
        assert cache.verify() == []
        cache.close()


def test_token_cache_computes_only_what_is_missing(tmp_path):
    asked: list[str] = []

    def encode_tokens(texts: list[str]) -> list[np.ndarray]:
        asked.extend(texts)
        return [np.outer(np.arange(1, len(text) + 1), np.ones(DIM)) for text in texts]

    cache = TokenEmbeddingCache(tmp_path, FINGERPRINT, DIM, shard_rows=8)
    texts = ["a", "abc", "ab", "abc", "abcdefghij"]
    first = cache.get_or_compute(texts, encode_tokens, batch_size=2)
    again = cache.get_or_compute(texts[::-1], encode_tokens)[::-1]
    assert asked == ["abcdefghij", "abc", "ab", "a"]
    assert [m.shape for m in first] == [(len(text), DIM) for text in texts]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(UserError, match="matrix 0 has no rows"):
        cache.put_many(["x"], [np.zeros((0, DIM))])


# ------------------------------------------------------------------- identity


CHANGED = {f.name: 7 if f.type == "int" else "b" * 64 for f in dataclasses.fields(Fingerprint)}


@pytest.mark.parametrize("field", CHANGED)
def test_no_vector_of_another_model_is_ever_returned(tmp_path, field):
    other = dataclasses.replace(FINGERPRINT, **{field: CHANGED[field]})
    with make(tmp_path) as cache:
        cache.put_many(["text"], encode(["text"]))
        keys = cache.keys(["text"])
    with pytest.raises(UserError, match=rf"fingerprint\.{field} is .* not ") as error:
        make(tmp_path, fingerprint=other)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    # Even when someone overwrites what the cache says of itself, the keys do not match.
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'fingerprint'", (json.dumps(other.as_dict()),))
    with make(tmp_path, fingerprint=other) as cache:
        assert not cache.get_many(["text"]).found.any()
        assert not np.array_equal(cache.keys(["text"]), keys)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"dim": 5}, "dim is 4, not 5"), ({"dtype": "int8"}, 'dtype is "float16", not "int8"')],
)
def test_other_shapes_are_refused_by_name(tmp_path, options, named):
    make(tmp_path).close()
    with pytest.raises(UserError, match=named):
        EmbeddingCache(tmp_path, FINGERPRINT, **({"dim": DIM} | options))
    with pytest.raises(UserError, match='layout is "vectors", not "tokens"'):
        TokenEmbeddingCache(tmp_path, FINGERPRINT, DIM)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"weights_sha256": "main"}, "weights_sha256: 'main' is not a SHA-256"),
        ({"tokenizer_sha256": "x"}, "tokenizer_sha256"),
        ({"max_length": "512"}, "max_length: '512' is not int"),
        ({"encoder": ""}, "no name"),
    ],
)
def test_a_fingerprint_is_checked(fields, named):
    with pytest.raises(UserError, match=named):
        Fingerprint(**({"encoder": "e", "weights_sha256": "0" * 64} | fields))


def test_fingerprint_survives_json_and_refuses_unknown_fields():
    assert Fingerprint.from_dict(FINGERPRINT.as_dict()) == FINGERPRINT
    assert FINGERPRINT.digest().hex() == "eeffe953a3b7c72f2b8db50a6466f657c5261976d682eeb44d61f85f8169f6f3"
    for wrong in ({}, {**FINGERPRINT.as_dict(), "x": 1}, [1], None):
        with pytest.raises(UserError):
            Fingerprint.from_dict(wrong)


def test_texts_are_equal_in_nfc_and_ids_are_not_texts(tmp_path):
    with make(tmp_path) as cache:
        composed, decomposed = cache.keys(["é", "e\u0301"])
        assert np.array_equal(composed, decomposed)
        keys = cache.keys(["", [], "1", [1], (1,), np.array([1]), [1, 2], "\x01" + 7 * "\0"])
        assert len({key.tobytes() for key in keys}) == 6
        for wrong in ([1.5], [[1, [2]]], [None], ["\ud800"]):
            with pytest.raises(UserError):
                cache.keys(wrong)
        with pytest.raises(UserError, match="one text was given"):
            cache.get_many("text")


# -------------------------------------------------------------------- compute


def test_only_what_is_missing_is_encoded_once_in_batches_of_like_length(tmp_path):
    calls: list[list[str]] = []

    def count(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        return encode(texts)

    texts = ["ccc", "a", "bb", "a", "dddd", "known", "a"]
    with make(tmp_path) as cache:
        cache.put_many(["known"], encode(["known"]))
        rows = cache.get_or_compute(texts, count, batch_size=2)
        assert calls == [["dddd", "ccc"], ["bb", "a"]]
        assert np.array_equal(rows, encode(texts))
        assert np.array_equal(cache.get_or_compute(texts, count), rows) and len(calls) == 2
        assert cache.get_or_compute([], count).shape == (0, DIM)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_first_answer_and_later_ones_are_the_same_bits(tmp_path, dtype):
    def noisy(texts: list[str]) -> np.ndarray:
        return np.random.default_rng(len(texts)).standard_normal((len(texts), DIM))

    texts = [f"text {i}" for i in range(20)]
    with make(tmp_path, dtype=dtype, shard_rows=7) as cache:
        first = cache.get_or_compute(texts, noisy, batch_size=6)
        assert first.dtype == np.float32
        assert first.tobytes() == cache.get_many(texts).vectors.tobytes()
        cache.compact()
        assert first.tobytes() == cache.get_many(texts).vectors.tobytes()


def test_batches_before_a_failure_are_kept(tmp_path):
    def fail_at_last(texts: list[str]) -> np.ndarray:
        if "a" in texts:
            raise RuntimeError("out of memory")
        return encode(texts)

    with make(tmp_path) as cache:
        with pytest.raises(RuntimeError):
            cache.get_or_compute(["a", "bb", "ccc"], fail_at_last, batch_size=1)
        assert cache.get_many(["a", "bb", "ccc"]).found.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (np.zeros((2, DIM + 1)), r"shape \(2, 5\)"),
        (np.zeros((3, DIM)), "2 texts came with 3 vectors"),
        (np.zeros(DIM), r"shape \(4,\)"),
        (np.full((2, DIM), np.nan), "vector 0 is not finite"),
        (np.array([[0] * DIM, [1e6] * DIM]), "vector 1 is not finite as float16. Use dtype float32"),
        ([["x"] * DIM] * 2, "not numbers"),
    ],
)
def test_what_an_encoder_may_not_return(tmp_path, answer, named):
    with make(tmp_path) as cache:
        with pytest.raises(UserError, match=named):
            cache.get_or_compute(["one", "two"], lambda _: answer)
        assert len(cache) == 0


def test_counts_must_agree(tmp_path):
    with make(tmp_path) as cache, pytest.raises(UserError, match="2 texts came with 1 vectors"):
        cache.put_many(["a", "b"], np.zeros((1, DIM)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=DIM, max_size=DIM))
def test_rounding_of_every_type_is_bounded(values):
    exact = np.array([values], dtype=np.float32)
    largest = np.abs(exact).max()
    # Half a unit in the last place: 2^-11 of the number (2^-25 below the normal range); half a step of 127.
    bounds = {"float32": 0 * exact, "float16": np.abs(exact) * 2**-11 + 2**-25, "int8": largest / 254 * 1.001 + 1e-37}
    for dtype, bound in bounds.items():
        codec = Codec(DIM, dtype)
        assert (np.abs(codec.decode(codec.encode(exact)) - exact) <= bound).all()


# --------------------------------------------------------------------- matrix


def test_matrix_is_a_memory_map_where_rows_lie_side_by_side(tmp_path):
    texts = [f"text {i}" for i in range(30)]
    with make(tmp_path, shard_rows=10) as cache:
        cache.put_many(texts[:15], encode(texts[:15]))
        assert isinstance(cache.as_matrix(), np.memmap)
        assert isinstance(cache.as_matrix(texts[3:9]), np.memmap)
        assert np.array_equal(cache.as_matrix(texts[3:9]), encode(texts[3:9]))
        assert np.array_equal(cache.as_matrix(texts[9:3:-1]), encode(texts[9:3:-1]))
        cache.put_many(texts[15:], encode(texts[15:]))
        assert np.array_equal(cache.as_matrix(), encode(texts)) and not isinstance(cache.as_matrix(), np.memmap)
        cache.compact()
        matrix = cache.as_matrix(texts)
        assert isinstance(matrix, np.memmap) and matrix.dtype == np.float16
        assert np.array_equal(matrix, encode(texts))
        with pytest.raises(ValueError, match="read-only"):
            matrix[0] = 1
        with pytest.raises(UserError, match=r"1 of 2 texts are not in the cache \(the first is number 1\)"):
            cache.as_matrix([texts[0], "absent"])
        assert np.array_equal(np.load(next((tmp_path / "shards").glob("*.npy"))), encode(texts))


def test_an_empty_cache(tmp_path):
    with make(tmp_path) as cache:
        assert len(cache) == 0 and "x" not in cache
        assert cache.as_matrix().shape == cache.as_matrix([]).shape == cache.get_many([]).vectors.shape == (0, DIM)
        assert cache.put_many([], np.zeros((0, DIM))) == 0
        assert list(cache.chunks()) == [] and cache.verify() == []
        assert cache.compact().shards_after == 0


def test_a_limit_bounds_the_disk(tmp_path):
    with make(tmp_path, max_bytes=50 * 2 * DIM, shard_rows=8) as cache:
        for i in range(60):
            texts = [f"text {i} {j}" for j in range(9)]
            cache.put_many(texts, encode(texts))
            assert "text 0 0" not in cache or cache.get_many(["text 0 0"]).found.all()  # keep one in use
        stats = cache.stats()
        assert stats["bytes_of_vectors"] <= 50 * 2 * DIM
        assert stats["dead"] <= stats["entries"] and stats["orphans"] == 0
        assert "text 0 0" in cache and "text 1 0" not in cache


# ------------------------------------------------------------------ processes


def test_import_loads_no_framework():
    code = (
        "import sys, latentlab_shared.embeddings\n"
        "heavy = ('torch', 'tensorflow', 'pyarrow', 'safetensors', 'rich', 'typer', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _use_after_fork(cache: EmbeddingCache, number: int) -> None:
    cache.put_many([f"child {number}"], encode([f"child {number}"]))
    os._exit(0 if cache.get_many(["parent", f"child {number}"]).found.all() else 1)


def test_an_open_cache_survives_fork_and_pickle(tmp_path):
    with make(tmp_path, max_bytes=1 << 20) as cache:
        cache.put_many(["parent"], encode(["parent"]))
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=_use_after_fork, args=(cache, i)) for i in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0, 0]
        assert len(cache) == 4
        copy = pickle.loads(pickle.dumps(cache))
        assert copy.max_bytes == 1 << 20 and len(copy) == 4
        copy.close()


def test_threads_share_one_cache(tmp_path):
    with make(tmp_path, shard_rows=16) as cache:
        wrong = []

        def work(number: int) -> None:
            for i in range(10):
                texts = [f"{number} {i}", f"all {i}"]
                if not np.array_equal(cache.get_or_compute(texts, encode), encode(texts)):
                    wrong.append(texts)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong and len(cache) == 50


def test_readers_go_on_while_another_object_compacts(tmp_path):
    texts = [f"text {i}" for i in range(40)]
    with make(tmp_path, shard_rows=5) as writer, make(tmp_path, read_only=True) as reader:
        for start in range(0, 40, 5):
            writer.put_many(texts[start : start + 5], encode(texts[start : start + 5]))
        held = reader.as_matrix(texts[:5])
        pieces = reader.chunks()
        first = next(pieces)[1]
        writer.compact()
        assert np.array_equal(reader.get_many(texts).vectors, encode(texts))
        assert np.array_equal(held, encode(texts[:5]))
        assert np.array_equal(np.concatenate([first, *(rows for _, rows in pieces)]), encode(texts))


def test_read_only_reads_and_never_writes(tmp_path):
    with pytest.raises(UserError, match="there is no cache here"):
        make(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()
    with make(tmp_path) as cache:
        cache.put_many(["text"], encode(["text"]))
    with make(tmp_path, read_only=True, max_bytes=1) as cache:
        assert cache.get_many(["text"]).found.all()
        assert np.array_equal(cache.get_or_compute(["text"], encode), encode(["text"]))
        for change in (lambda: cache.put_many(["new"], encode(["new"])), cache.compact):
            with pytest.raises(UserError, match="open for reading only"):
                change()


def test_progress_goes_to_a_terminal_only(tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_embeddings import make, encode\n"
        "make(Path(sys.argv[1])).get_or_compute([f'text {i}' for i in range(9)], encode, batch_size=1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a"), str(Path(__file__).parent)]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stdout == piped.stderr == b""
    command[3] = str(tmp_path / "b")
    parent, child = pty.openpty()
    shown = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=child, check=True, env=os.environ | {"TERM": "xterm"}
    )
    os.close(child)
    assert b"encoding" in os.read(parent, 1 << 16) and shown.stdout == b""
    os.close(parent)


def test_what_no_vector_or_id_can_be_is_refused(tmp_path):
    with make(tmp_path) as cache, pytest.raises(UserError, match="complex"):
        cache.put_many(["a"], np.ones((1, DIM)) * 1j)
    with make(tmp_path) as cache, pytest.raises(UserError, match="no token id"):
        cache.get_many([np.array([2**64 - 1], np.uint64)])
    with pytest.raises(UserError, match="number of components"):
        EmbeddingCache(tmp_path / "wide", FINGERPRINT, 10**12)
