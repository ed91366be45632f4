"""Throw damaged files at every reader of the lab: each must read them, or refuse them with one clear line.

``make fuzz`` gives each reader five minutes (``MINUTES=1`` for one, ``READER=nrms-news`` for one reader). The tests run
the same for a moment. Anything but an answer or a ``UserError`` is a finding: another exception, a run of more than
ten seconds, more than two GiB of memory. The file that caused it is kept.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentlab_shared.errors import UserError
from latentlab_shared.files import read_json, write_json
from latentlab_shared.provenance import commit, machine, today

SECONDS_PER_FILE = 10
MEMORY = 2 * 2**30
# What readers stumble over: ends of strings, deep nesting, odd numbers and characters, marks of other formats.
TOKENS = [
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\t", b"\n", b"\r\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\\"),
    *(b"-1", b"1e999", b"NaN", b"null", b"true", b"9" * 30, b"0x10", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xc0\xaf"),
    *(
        b"../" * 4,
        b"/etc/passwd",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
        b"&lt;",
        b"<",
        b">",
        b"</",
        b"[B-ASP]",
        b"$LABEL$",
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"a" * 70000, b"\n" * 3000, b"%s%n", b"\x1b[2J", b"\x1f\x8b\x08", b"PK\x03\x04"),
]


@dataclass(frozen=True)
class Reader:
    """One reader: where its file stands, a good file, and the call.

    Attributes:
        name: of the file below the folder.
        good: bytes that are read without complaint.
        read: called with the folder after the file was changed.
        prepare: makes what else the folder needs, once.
        packed: the bytes are changed before they are compressed, in half of the cases.
    """

    name: str
    good: bytes
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    packed: bool = False


def jsonl(*rows: object) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def all_of(items: Any) -> int:
    """Exhaust an iterator."""
    return sum(1 for _ in items)


def shared_readers() -> dict[str, Reader]:
    """The readers of ``latentlab_shared``."""
    from latentlab_shared.config import load_config
    from latentlab_shared.embeddings import EmbeddingCache, Fingerprint, open_cache
    from latentlab_shared.encoders import LsaEncoder
    from latentlab_shared.runs import RunFolder
    from latentlab_shared.tables import fill
    from nrms.config import NrmsConfig

    fingerprint = Fingerprint("tiny", "a" * 64)
    texts = [f"text {i}" for i in range(40)]
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)

    def cache(folder: Path) -> None:
        with EmbeddingCache(folder / "cache", fingerprint, 4, shard_rows=16) as made:
            made.put_many(texts, vectors)
            made.export_to(folder / "all.safetensors")

    def look(folder: Path) -> None:
        with open_cache(folder / "cache") as opened:
            opened.verify()
            assert isinstance(opened, EmbeddingCache)
            opened.get_many(texts)
            opened.as_matrix()

    def take(folder: Path) -> None:
        shutil.rmtree(folder / "copy", ignore_errors=True)
        with EmbeddingCache(folder / "copy", fingerprint, 4) as made:
            made.import_from(folder / "all.safetensors")

    def run(folder: Path) -> None:
        found = RunFolder.read(folder)
        _ = found.config
        found.metrics()

    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        cache(home)
        database = home / "cache" / "index.sqlite"
        with sqlite3.connect(database) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        index, portable = database.read_bytes(), (home / "all.safetensors").read_bytes()
        shard_name = next((home / "cache" / "shards").glob("*.npy")).name
        shard = (home / "cache" / "shards" / shard_name).read_bytes()
        shutil.copytree(home / "cache", home / "kept")
        kept = {p.relative_to(home / "kept"): p.read_bytes() for p in (home / "kept").rglob("*") if p.is_file()}
        LsaEncoder.fit(
            [f"the {word} house is near the old {word}" for word in ("red", "blue", "green", "grey")], 3
        ).save(home / "lsa")
        lsa = {p.name: p.read_bytes() for p in (home / "lsa").iterdir()}

    def put(files: dict[Any, bytes], below: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            for name, content in files.items():
                path = folder / below / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

        return write

    table = {"command": "x", "data": "y", "commit": "z", "date": "d", "machine": "m", "seeds": [0]}
    table["rows"] = [{"name": "a", "metrics": {"f1": 0.5}, "interval": {"f1": [0.4, 0.6]}}]
    page = "<!-- table: t.json columns: name, f1 -->\n<!-- end table -->\n"
    config = b"model:\n  heads: 4\ntrain:\n  epochs: 2\n  learning_rate: 1e-3\n"
    lsa_json = next(name for name in lsa if name.endswith(".json"))
    lsa_weights = next(name for name in lsa if name.endswith(".safetensors"))
    readers = {
        "shared-json": Reader("a.json", b'{"a": [1, 2.5, "x"], "b": null}', lambda f: read_json(f / "a.json")),
        "shared-config": Reader("a.yaml", config, lambda f: load_config(NrmsConfig, f / "a.yaml")),
        "shared-run": Reader("config.json", b'{"a": 1}', run, put({"metrics.jsonl": b'{"step": 1}\n'}, "")),
        "shared-metrics": Reader("metrics.jsonl", jsonl({"step": 1}), run, put({"config.json": b"{}"}, "")),
        "shared-table": Reader(
            "t.json", json.dumps(table).encode(), lambda f: fill(f / "R.md"), put({"R.md": page.encode()}, "")
        ),
        "shared-cache-index": Reader("cache/index.sqlite", index, look, put(kept, "cache")),
        "shared-cache-shard": Reader(f"cache/shards/{shard_name}", shard, look, put(kept, "cache")),
        "shared-cache-import": Reader("all.safetensors", portable, take),
        "shared-lsa-words": Reader(f"lsa/{lsa_json}", lsa[lsa_json], _lsa, put(lsa, "lsa")),
        "shared-lsa-weights": Reader(f"lsa/{lsa_weights}", lsa[lsa_weights], _lsa, put(lsa, "lsa")),
    }
    return readers


def _lsa(folder: Path) -> None:
    from latentlab_shared.encoders import LsaEncoder

    LsaEncoder.load(folder / "lsa").encode(["the red house"])


def rsr_net_readers() -> dict[str, Reader]:
    """Articles with their summaries, and the archive they are published in."""
    from rsr_net.data.prepare import read_archive
    from rsr_net.data.readers import read_examples

    row = {"id": "a1", "article": "The river rose. Schools were closed.\nNobody was hurt.", "highlights": ["It rose."]}
    scitldr = {"paper_id": "p", "source": ["We measure.", "It is fast."], "target": ["Fast."]}
    story = (
        b"The river rose.\n\nSchools were closed.\n\n@highlight\n\nThe river rose\n\n@highlight\n\nNobody was hurt\n"
    )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("cnn/stories/a.story", "cnn/stories/b.story"):
            member = tarfile.TarInfo(name)
            member.size = len(story)
            archive.addfile(member, io.BytesIO(story))

    def examples(name: str) -> Callable[[Path], int]:
        return lambda folder: all_of(read_examples(folder / name, None))

    return {
        "rsr_net-jsonl": Reader("a.jsonl", jsonl(row, scitldr), examples("a.jsonl")),
        "rsr_net-jsonl.gz": Reader("a.jsonl.gz", jsonl(row, scitldr), examples("a.jsonl.gz"), packed=True),
        "rsr_net-story": Reader("a.story", story, examples("a.story")),
        "rsr_net-text": Reader("a.txt", b"The river rose. Schools were closed.\n", examples("a.txt")),
        "rsr_net-archive": Reader("a.tgz", packed.getvalue(), lambda f: all_of(read_archive(f / "a.tgz")), packed=True),
    }


def nrms_readers() -> dict[str, Reader]:
    """Click logs in four forms, the archive they come in, word vectors, a vocabulary, a catalogue."""
    from nrms.data.dkn import read_dkn
    from nrms.data.events import read_events_folder
    from nrms.data.mind import read_behaviors, read_news
    from nrms.data.prepare import _unpack
    from nrms.data.rows import BadRows
    from nrms.data.vectors import read_glove
    from nrms.data.vocabulary import load_vocabulary
    from nrms.inference.catalogue import Catalogue, Entry

    news = b"N1\tsport\tfootball\tA title that was read\tAbstract\t\t[]\t[]\nN2\tnews\tlocal\tAnother\t\t\t[]\t[]\n"
    clicks = b"1\tU1\t11/9/2019 2:14:46 PM\tN1 N2\tN1-1 N2-0\n2\tU2\t11/10/2019 1:00:00 AM\t\tN2-1 N1-0\n"
    articles = b"id\ttitle\tcategory\nA1\tOne title\tnews\nA2\tTwo titles\tsport\n"
    events = b"user\ttime\tarticle\tclicked\timpression\nU1\t2024-01-02T03:04:05\tA1\t1\t7\nU1\t1700000000\tA2\t0\t7\n"
    events += b"U2\t1700000500\tA2\t1\t8\nU2\t1700000500\tA1\t0\t8\nU2\t1700000900\tA2\t1\t9\n"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as held:
        held.writestr("MIND/news.tsv", news)
        held.writestr("MIND/behaviors.tsv", clicks)
    with tempfile.TemporaryDirectory() as made:
        rows = [Entry(f"N{i}", f"title {i}", "news", 0, None) for i in range(3)]
        vectors = np.arange(12, dtype=np.float16).reshape(3, 4)
        Catalogue("m" * 64, rows, vectors).save(Path(made) / "c")
        stored = {p.name: p.read_bytes() for p in (Path(made) / "c").iterdir()}

    def table(folder: Path) -> int:
        return all_of(
            (name, all_of(n), all_of(i)) for name, n, i in read_events_folder(folder, BadRows(skip=False), seed=0)
        )

    def catalogue(folder: Path) -> object:
        return Catalogue.load(folder).vectors.sum()

    def put(files: dict[str, bytes]) -> Callable[[Path], None]:
        return lambda folder: [(folder / name).write_bytes(content) for name, content in files.items()] and None

    words = json.dumps({"kind": "words", "words": ["a", "title"]}).encode()
    readers = {
        "nrms-news": Reader("news.tsv", news, lambda f: all_of(read_news(f / "news.tsv"))),
        "nrms-behaviors": Reader("behaviors.tsv", clicks, lambda f: all_of(read_behaviors(f / "behaviors.tsv"))),
        "nrms-dkn": Reader("log.txt", b"7\tA title\t1\n7\tOther title\t0\n", lambda f: read_dkn(f / "log.txt")),
        "nrms-articles": Reader("articles.tsv", articles, table, put({"events.tsv": events})),
        "nrms-events": Reader("events.tsv", events, table, put({"articles.tsv": articles})),
        "nrms-archive": Reader("a.zip", archive.getvalue(), lambda f: _unpack(f / "a.zip", f / "out")),
        "nrms-glove": Reader("g.txt", b"the 0.1 0.2 0.3\nof 1 2 3\n", lambda f: all_of(read_glove(f / "g.txt"))),
        "nrms-vocabulary": Reader("vocabulary.json", words, load_vocabulary),
    }
    for name in stored:
        readers[f"nrms-catalogue-{name}"] = Reader(name, stored[name], catalogue, put(stored))
    return readers


def seq2seq_keras_readers() -> dict[str, Reader]:
    """Tables, captions, Reuters."""
    from seq2seq_keras.data.readers import read_examples

    rows = jsonl({"text": "It rained. It stopped.", "summary": "Rain."}, {"text": ["a.", "b."], "summary": "c"})
    sgm = (
        b'<!DOCTYPE lewis SYSTEM "lewis.dtd">\n<REUTERS NEWID="1"><DATE>26-FEB-1987 15:01:01.79</DATE><TEXT>'
        b"<TITLE>COCOA &lt;CCO> RISES</TITLE><BODY>Showers continued. It rose.\n Reuter\n&#3;</BODY></TEXT></REUTERS>\n"
    )
    captions = b"\xef\xbb\xbfURL,IAShowID,MatchDateTime,Snippet\nu,S1,1/2/2020 3:04:05,it rained today in the city\n"
    news = b'"3","Title","A description, with a comma"\n"1","Other","More"\n'
    tsv = b"text\tsummary\nIt rained.\tRain\n"

    def examples(name: str) -> Callable[[Path], object]:
        return lambda folder: read_examples(folder / name)

    return {
        "seq2seq_keras-jsonl": Reader("a.jsonl", rows, examples("a.jsonl")),
        "seq2seq_keras-jsonl.gz": Reader("a.jsonl.gz", rows, examples("a.jsonl.gz"), packed=True),
        "seq2seq_keras-captions": Reader("a.csv", captions, examples("a.csv")),
        "seq2seq_keras-agnews": Reader("train.csv", news, examples("train.csv")),
        "seq2seq_keras-tsv": Reader("a.tsv", tsv, examples("a.tsv")),
        "seq2seq_keras-reuters": Reader("a.sgm", sgm, examples("a.sgm")),
        "seq2seq_keras-reuters.gz": Reader("a.sgm.gz", sgm, examples("a.sgm.gz"), packed=True),
    }


def clara_absa_readers() -> dict[str, Reader]:
    """Aspects in four forms."""
    from clara_absa.data_utils.readers import read_file

    xml = (
        b'<?xml version="1.0" encoding="utf-8"?>\n<sentences>\n<sentence><text>The food is good.</text><aspectTerms>'
        b'<aspectTerm from="4" polarity="positive" term="food" to="8"/></aspectTerms></sentence>\n</sentences>\n'
    )
    table = b"text,aspect,polarity,start,end,id\nThe food is good,food,positive,4,8,a\n"
    aspect = {"term": "food", "polarity": "positive", "start": 4, "end": 8}
    rows = jsonl({"id": "a", "text": "The food is good", "aspects": [aspect]})
    marked = b"The [B-ASP]food[E-ASP] is good $LABEL$ Positive\n"

    def examples(name: str) -> Callable[[Path], object]:
        return lambda folder: read_file(folder / name)

    return {
        "clara_absa-xml": Reader("a.xml", xml, examples("a.xml")),
        "clara_absa-csv": Reader("a.csv", table, examples("a.csv")),
        "clara_absa-jsonl": Reader("a.jsonl", rows, examples("a.jsonl")),
        "clara_absa-marked": Reader("a.txt", marked, examples("a.txt")),
    }


def refrag_readers() -> dict[str, Reader]:
    """Questions with documents, and tagged prompts."""
    from refrag.data.questions import read_questions
    from refrag.model.documents import parse_segments
    from refrag.serving.library import read_sources
    from refrag.training.alignments import read_texts

    docs = [{"id": "1", "title": "The mill", "text": "It was built in 1880."}]
    row = {"question": "When?", "docs": docs, "answer": "1880 [1].", "value": "1880"}
    row |= {"gold": "1", "start": 16, "end": 20, "also": []}
    prompt = (
        b'Read <doc id="1" title="The mill">It was &lt;built&gt; in 1880.</doc> and <doc id=\'2\'>more</doc> answer.'
    )

    def segments(folder: Path) -> object:
        return parse_segments((folder / "p.txt").read_bytes().decode("utf-8", "replace"))

    return {
        "refrag-questions": Reader("q.jsonl", jsonl(row), lambda f: all_of(read_questions(f / "q.jsonl"))),
        "refrag-questions.gz": Reader(
            "q.jsonl.gz", jsonl(row), lambda f: all_of(read_questions(f / "q.jsonl.gz")), packed=True
        ),
        "refrag-texts.gz": Reader(
            "t.jsonl.gz", jsonl({"text": "It was built."}), lambda f: all_of(read_texts(f / "t.jsonl.gz")), packed=True
        ),
        "refrag-library": Reader(
            "d.jsonl", jsonl({"id": "1", "text": "It was built."}), lambda f: all_of(read_sources(f / "d.jsonl"))
        ),
        "refrag-prompt": Reader("p.txt", prompt, segments),
    }


GROUPS = {
    "shared": shared_readers,
    "rsr_net": rsr_net_readers,
    "nrms": nrms_readers,
    "seq2seq_keras": seq2seq_keras_readers,
    "clara_absa": clara_absa_readers,
    "refrag": refrag_readers,
}


def all_readers() -> dict[str, Reader]:
    """Every reader by name."""
    return {name: reader for make in GROUPS.values() for name, reader in make().items()}


def damaged(good: bytes, chance: random.Random) -> bytes:
    """A file with one to four things changed."""
    data = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        length = min(len(data) - at, chance.choice((1, 2, 4, 16, 64)))
        match chance.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + length] = b""
            case 2:
                data[at:at] = chance.randbytes(length or 1)
            case 3:
                data[at : at + length] = chance.choice(TOKENS)
            case 4:
                data[at:at] = chance.choice(TOKENS)
            case 5:
                data[at:at] = data[at : at + length] * chance.choice((2, 50))
            case 6:
                del data[at:]
            case 7 if at < len(data):
                data[at] = chance.choice((0, 0x7F, 0x80, 0xFF))
    return bytes(data)


@contextmanager
def limits() -> Iterator[None]:
    """Seconds and memory of one file."""

    def late(*_: object) -> None:
        raise TimeoutError(f"still reading after {SECONDS_PER_FILE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS_PER_FILE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_file(reader: Reader, folder: Path, content: bytes) -> BaseException | None:
    """Read one file; what it raised, unless that is a ``UserError`` of one line."""
    (folder / reader.name).write_bytes(content)
    try:
        with limits():
            reader.read(folder)
    except UserError as error:
        return None if "\n" not in str(error) else error
    except Exception as error:
        return error
    return None


def fuzz(reader: Reader, folder: Path, seconds: float, seed: int) -> Iterator[tuple[bytes, BaseException | None]]:
    """Damaged files for so many seconds (at least ten), with what each raised that is a finding."""
    chance = random.Random(seed)
    (folder / reader.name).parent.mkdir(parents=True, exist_ok=True)
    reader.prepare(folder)
    good = gzip.compress(reader.good, mtime=0) if reader.packed else reader.good
    fault = one_file(reader, folder, good)
    if fault is not None:
        yield good, fault
        return
    (folder / reader.name).write_bytes(good)
    reader.read(folder)  # a good file is read, not refused
    until, done = time.monotonic() + seconds, 0
    while done < 10 or time.monotonic() < until:
        done += 1
        inside = reader.packed and chance.random() < 0.5
        content = gzip.compress(damaged(reader.good, chance), 1, mtime=0) if inside else damaged(good, chance)
        yield content, one_file(reader, folder, content)


def keep(path: Path, name: str, metrics: dict[str, float]) -> None:
    """Add a reader's row to the results file of a run, or begin one."""
    held: dict[str, Any] = read_json(path) if path.is_file() else {"rows": []}
    rows = {row["name"]: row for row in held["rows"]} | {name: {"name": name, "metrics": metrics}}
    facts = {"command": "make fuzz", "data": "damaged copies of a good file", "commit": commit() or "none"}
    facts |= {"date": today(), "machine": machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**facts, "rows": [rows[key] for key in sorted(rows)]})


def main() -> int:
    """Fuzz from the command line; 1 if there was a finding."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="per reader [default: 300]")
    parser.add_argument("--reader", default="", help="only readers whose name begins so")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the changes [default: the time]")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/fuzz"), help="where findings are kept")
    parser.add_argument("--results", type=Path, help="rows to add to [default: results.json where findings are kept]")
    given = parser.parse_args()
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (usage + MEMORY, resource.RLIM_INFINITY))
    chosen = {name: reader for name, reader in all_readers().items() if name.startswith(given.reader)}
    if not chosen:
        print(f"error: no reader begins with {given.reader!r}. There are: {', '.join(all_readers())}", file=sys.stderr)
        return 2
    found, results = 0, given.results or given.output_dir / "results.json"
    for name, reader in chosen.items():
        kinds: set[str] = set()
        files = 0
        with tempfile.TemporaryDirectory() as folder:
            for content, fault in fuzz(reader, Path(folder), given.seconds, given.seed):
                files += 1
                if fault is None:
                    continue
                frames = traceback.extract_tb(fault.__traceback__)
                kind = f"{type(fault).__name__} at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}"
                if kind in kinds:
                    continue
                kinds.add(kind)
                given.output_dir.mkdir(parents=True, exist_ok=True)
                kept = given.output_dir / f"{name}-{len(kinds)}{''.join(Path(reader.name).suffixes)}"
                kept.write_bytes(content)
                print(f"{name}: {kind}: {' '.join(str(fault).split())[:120]} ({kept})", flush=True)
        found += len(kinds)
        print(f"{name}: {len(kinds)} findings in {files} files, seed {given.seed}", flush=True)
        keep(results, name, {"seconds": given.seconds, "seed": given.seed, "files": files, "findings": len(kinds)})
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
