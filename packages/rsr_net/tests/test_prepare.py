"""`prepare` against a real HTTP server: ranges, broken connections, kills, corruption, hostile archives."""

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from latentlab_shared.download import download
from latentlab_shared.errors import NeedsNetwork, RunFailed, UserError
from rsr_net.data import BadRows, read_examples
from rsr_net.data.prepare import prepare, read_archive
from rsr_net.sample import generate, write_stories


class Files(BaseHTTPRequestHandler):
    """Serves ``server.files`` with ranges; can break connections, forget ranges, and be slow."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        body = server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(body).hexdigest()[:12]}"'
        start = 0
        wanted = self.headers.get("Range", "")
        server.ranges.append(wanted)
        if wanted and server.knows_ranges and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = len(body)
        if server.breaks:
            end = min(end, start + server.breaks.pop(0))
        try:
            for at in range(start, end, server.block):
                self.wfile.write(body[at : min(end, at + server.block)])
                server.sent += min(end, at + server.block) - at
                time.sleep(server.pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.close_connection = True


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    made.files, made.ranges, made.breaks, made.knows_ranges = {}, [], [], True
    made.sent, made.block, made.pause = 0, 65536, 0.0
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def archive(folder: Path, *, extra=(), prefix="cnn/stories") -> bytes:
    """A .tgz of the stories in a folder, as published; ``extra`` are (TarInfo, bytes) pairs."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        for path in sorted(folder.glob("*.story")):
            tar.add(path, f"{prefix}/{path.name}")
        for info, body in extra:
            tar.addfile(info, io.BytesIO(body))
    return held.getvalue()


def member(name: str, body: bytes = b"News.\n", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(body) if kind == tarfile.REGTYPE else 0, link
    return info, body


@pytest.fixture
def stories(tmp_path):
    write_stories(tmp_path / "stories", 60, seed=1)
    return tmp_path / "stories"


# -- download ----------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_a_second_run_fetches_nothing(tmp_path, server):
    body = os.urandom(300_000)
    server.files["/a.bin"] = body
    target = tmp_path / "d" / "a.bin"
    assert download(f"{server.url}/a.bin", target).read_bytes() == body
    record = json.loads((target.parent / "downloads.json").read_text())["a.bin"]
    assert record == {
        "url": f"{server.url}/a.bin",
        "bytes": 300_000,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    download(f"{server.url}/a.bin", target)
    assert len(server.ranges) == 1 and sorted(p.name for p in target.parent.iterdir()) == ["a.bin", "downloads.json"]


def test_a_broken_connection_is_taken_up_where_it_broke(tmp_path, server):
    body = os.urandom(300_000)
    server.files["/a.bin"], server.breaks = body, [100_000, 100_000]
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == body
    assert server.ranges == ["", "bytes=100000-", "bytes=200000-"] and server.sent == 300_000


def test_after_too_many_breaks_the_next_run_goes_on(tmp_path, server):
    body = os.urandom(100_000)
    server.files["/a.bin"], server.breaks = body, [30_000, 10_000]
    with pytest.raises(RunFailed, match="broke after 40000 bytes"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=2)
    assert not (tmp_path / "a.bin").exists()
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == body
    assert server.ranges[-1] == "bytes=40000-"


def test_a_server_without_ranges_sends_it_all_again(tmp_path, server):
    body = os.urandom(100_000)
    server.files["/a.bin"], server.breaks, server.knows_ranges = body, [30_000], False
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == body
    assert server.sent == 130_000


def test_a_file_that_changed_on_the_server_is_not_stitched_together(tmp_path, server):
    server.files["/a.bin"], server.breaks = b"a" * 100_000, [30_000]
    with pytest.raises(RunFailed):
        download(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=1)
    server.files["/a.bin"] = b"b" * 90_000
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == b"b" * 90_000


def test_a_part_that_was_complete_is_kept(tmp_path, server):
    body = os.urandom(50_000)
    server.files["/a.bin"] = body
    (tmp_path / "a.bin.part").write_bytes(body)
    (tmp_path / "a.bin.part.json").write_text(json.dumps({"tag": f'"{hashlib.sha256(body).hexdigest()[:12]}"'}))
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == body
    assert server.sent == 0


def test_an_altered_file_is_noticed_on_the_next_run(tmp_path, server):
    server.files["/a.bin"] = b"a" * 1000
    target = download(f"{server.url}/a.bin", tmp_path / "a.bin")
    target.write_bytes(b"a" * 999 + b"b")
    with pytest.raises(UserError, match="has changed since it was downloaded"):
        download(f"{server.url}/a.bin", target)


def test_faults_of_the_address_get_one_line(tmp_path, server):
    with pytest.raises(UserError, match="404"):
        download(f"{server.url}/absent", tmp_path / "a")
    (tmp_path / "b").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        download(f"{server.url}/b", tmp_path / "b")
    with pytest.raises(NeedsNetwork, match=r"cannot be reached.*Do that"):
        download("http://127.0.0.1:1/x", tmp_path / "x", offline="Do that", attempts=1)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


# -- prepare -----------------------------------------------------------------------------------------------------


def command(server, folder: Path) -> list[str]:
    call = [sys.executable, "-m", "rsr_net.cli", "prepare", "--split", "hash", "--url", f"{server.url}/cnn.tgz"]
    return [*call, "--output-dir", str(folder), "--json"]


@pytest.mark.slow
def test_a_killed_download_goes_on_in_the_next_run(tmp_path, server, stories):
    # Bytes that do not compress, so that the archive is long enough to be killed in its middle.
    server.files["/cnn.tgz"] = body = archive(stories, extra=[member("cnn/noise.bin", os.urandom(3_000_000))])
    server.block, server.pause = 50_000, 0.05
    folder = tmp_path / "out"
    process = subprocess.Popen(command(server, folder), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    part = folder / "cnn.tgz.part"
    while not (part.exists() and part.stat().st_size > 1_000_000):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "cnn.tgz").exists()
    kept = part.stat().st_size
    server.pause = 0.0
    done = subprocess.run(command(server, folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert server.ranges == ["", f"bytes={kept}-"] and (folder / "cnn.tgz").read_bytes() == body
    assert sum(json.loads(done.stdout)["articles"].values()) == 60


def test_stories_become_shards_that_read_back_the_same(tmp_path, server, stories):
    server.files["/cnn.tgz"] = archive(stories)
    account = prepare("stories", tmp_path / "out", urls=(f"{server.url}/cnn.tgz",), split="hash")
    read = {e.id: e for part in account["articles"] for e in read_examples(tmp_path / "out", part)}
    assert read == {e.id: e for e in generate(60, seed=1)}
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    again = prepare("stories", tmp_path / "out", urls=(f"{server.url}/cnn.tgz",), split="hash")
    assert again == account and len(server.ranges) == 1
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}


def test_the_published_lists_are_fetched_and_obeyed(tmp_path, server):
    from rsr_net.data.stories import article_id

    urls = [f"http://news.example/{n}" for n in range(5)]
    folder = tmp_path / "s"
    folder.mkdir()
    for url in urls:
        (folder / f"{article_id(url)}.story").write_text("News came.\n\n@highlight\n\nIt came\n")
    server.files = {
        "/cnn.tgz": archive(folder),
        "/all_train.txt": "\n".join(urls[:2]).encode(),
        "/all_val.txt": urls[2].encode(),
        "/all_test.txt": urls[3].encode(),
    }
    lists = tuple(f"{server.url}/all_{part}.txt" for part in ("train", "val", "test"))
    account = prepare("stories", tmp_path / "out", urls=(f"{server.url}/cnn.tgz",), list_urls=lists)
    assert account["articles"] == {"train": 2, "valid": 1, "test": 1}  # the fifth is on no list
    del server.files["/all_val.txt"]
    with pytest.raises(UserError, match=r"404.*--url-lists"):
        prepare("stories", tmp_path / "two", urls=(f"{server.url}/cnn.tgz",), list_urls=lists)


def test_a_corrupt_archive_is_one_line_and_leaves_no_shards(tmp_path, stories):
    path = tmp_path / "cnn.tgz"
    body = bytearray(archive(stories))
    body[len(body) // 2 : len(body) // 2 + 200] = bytes(200)
    path.write_bytes(body)
    with pytest.raises(UserError, match="damaged"):
        prepare(str(path), tmp_path / "out", split="hash")
    assert list((tmp_path / "out").glob("*.jsonl.gz")) == [] and not (tmp_path / "out" / "prepared.json").exists()
    path.write_bytes(archive(stories)[:-500])
    with pytest.raises(UserError, match="damaged"):
        prepare(str(path), tmp_path / "out", split="hash")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (member("../../evil.story"), "leaves the archive"),
        (member("/etc/evil.story"), "leaves the archive"),
        (member("cnn\\..\\evil.story"), "leaves the archive"),
        (member("cnn/a.story", kind=tarfile.SYMTYPE, link="/etc/passwd"), "link or a device"),
        (member("cnn/a.story", kind=tarfile.LNKTYPE, link="cnn/b.story"), "link or a device"),
        (member("cnn/a.story", kind=tarfile.FIFOTYPE), "link or a device"),
        (member("cnn/a.story", b" " * (5 * 2**20)), "too large"),
    ],
)
def test_hostile_archives_are_refused(tmp_path, made, said):
    path = tmp_path / "x.tgz"
    path.write_bytes(archive(tmp_path, extra=[made]))
    with pytest.raises(UserError, match=said):
        list(read_archive(path))
    assert [p.name for p in tmp_path.iterdir()] == ["x.tgz"]


def test_a_bomb_of_many_members_is_refused(tmp_path):
    path = tmp_path / "x.tgz"
    path.write_bytes(archive(tmp_path, extra=[member(f"{n}.story", b"x" * 4 * 2**20) for n in range(20)]))
    with pytest.raises(UserError, match="too large"):
        list(read_archive(path))


def test_attributes_of_macos_and_empty_stories_are_left_out(tmp_path):
    path = tmp_path / "x.tgz"
    extra = [member("c/._a.story", b"\x00\x05"), member("c/a.story"), member("c/b.story", b"@highlight\n\nOnly\n")]
    path.write_bytes(archive(tmp_path, extra=extra))
    bad = BadRows()
    account = prepare(str(path), tmp_path / "out", split="hash", bad=bad)
    assert sum(account["articles"].values()) == 1 and bad.without_article == 1


def test_jsonl_is_converted_part_by_part(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": "t", "article": "News.", "highlights": "It."}) + "\n")
    (tmp_path / "val.jsonl").write_text(json.dumps({"id": "v", "article": "News.", "highlights": "It."}) + "\n{\n")
    with pytest.raises(UserError, match=r"val.jsonl:2.*--skip-bad"):
        prepare(str(tmp_path), tmp_path / "out")
    account = prepare(str(tmp_path), tmp_path / "out", bad=BadRows(skip=True))
    assert account["articles"] == {"train": 1, "valid": 1} and account["skipped"] == 1
    with gzip.open(tmp_path / "out" / "valid-00000.jsonl.gz", "rt") as file:
        assert json.loads(file.readline())["id"] == "v"


def source(folder: Path, article: str = "News.") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text(json.dumps({"id": "t", "article": article, "highlights": "It."}) + "\n")
    return folder


def test_files_of_others_are_neither_removed_nor_mixed_in(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mydata-00001.jsonl.gz").write_text("precious")
    prepare(str(source(tmp_path / "in")), out)
    prepare(str(source(tmp_path / "in", "Other news.")), out)
    assert (out / "mydata-00001.jsonl.gz").read_text() == "precious"
    (out / "valid-00003.jsonl.gz").write_text("precious")
    with pytest.raises(UserError, match="valid-00003.jsonl.gz, which `prepare` did not write"):
        prepare(str(tmp_path / "in"), out)
    assert (out / "valid-00003.jsonl.gz").read_text() == "precious"


@pytest.mark.parametrize("change", ["the input", "an output is gone", "an output differs", "the account is damaged"])
def test_a_changed_input_or_output_is_prepared_again(tmp_path, change):
    out, said = tmp_path / "out", []
    prepare(str(source(tmp_path / "in")), out)
    shard, account = out / "train-00000.jsonl.gz", out / "prepared.json"
    before = shard.read_bytes()
    prepare(str(tmp_path / "in"), out, log=said.append)
    assert said == [f"{out} is prepared already"]
    if change == "the input":
        source(tmp_path / "in", "Olds.")
    elif change == "an output is gone":
        shard.unlink()
    elif change == "an output differs":
        shard.write_bytes(before[:-1])
    else:
        account.write_text(json.dumps({**json.loads(account.read_text()), "shards": []}))
        shard.unlink()
    prepare(str(tmp_path / "in"), out, log=said.append)
    assert len(said) == 1 and (shard.read_bytes() == before) == (change != "the input")


def test_changed_url_lists_are_noticed(tmp_path):
    from rsr_net.data.stories import article_id

    folder, lists = tmp_path / "s", tmp_path / "url_lists"
    folder.mkdir(), lists.mkdir()
    url = "http://news.example/0"
    (folder / f"{article_id(url)}.story").write_text("News came.\n\n@highlight\n\nIt came\n")
    (tmp_path / "cnn.tgz").write_bytes(archive(folder))
    for part, held in (("train", url), ("val", ""), ("test", "")):
        (lists / f"all_{part}.txt").write_text(held)
    assert prepare(str(tmp_path / "cnn.tgz"), tmp_path / "out")["articles"] == {"train": 1}
    (lists / "all_train.txt").write_text("")
    (lists / "all_test.txt").write_text(url)
    assert prepare(str(tmp_path / "cnn.tgz"), tmp_path / "out")["articles"] == {"test": 1}


def test_a_folder_is_not_prepared_into_itself(tmp_path):
    folder = source(tmp_path / "in")
    for same in (folder, folder / ".." / "in"):
        with pytest.raises(UserError, match="the same folder"):
            prepare(str(folder), same)
    assert [path.name for path in folder.iterdir()] == ["train.jsonl"]


def test_a_preparation_that_fails_leaves_no_folder(tmp_path):
    folder = source(tmp_path / "in")
    with (folder / "train.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match="train.jsonl:2"):
        prepare(str(folder), tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_member_whose_name_is_not_utf_8_is_read(tmp_path):
    path = tmp_path / "x.tgz"
    path.write_bytes(archive(tmp_path, extra=[member("c/caf\udce9.story")]))
    assert sum(prepare(str(path), tmp_path / "out", split="hash")["articles"].values()) == 1
