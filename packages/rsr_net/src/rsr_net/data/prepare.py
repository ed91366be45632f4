"""Any source → one folder of JSONL shards: downloads, reads archives without unpacking them, splits, counts."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from latentlab_shared.download import download
from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import disk_errors, read_json, sha256_file, write_json
from rsr_net.data.readers import MAX_TEXT_BYTES, BadRows, decode, read_examples
from rsr_net.data.stories import SPLITS, hashed_split, listed_ids, make_example, parse_story
from rsr_net.data.types import Example

# The seed's "Data Setup".
STORY_URLS = (
    "https://huggingface.co/datasets/ccdv/cnn_dailymail/resolve/main/cnn_stories.tgz",
    "https://huggingface.co/datasets/ccdv/cnn_dailymail/resolve/main/dailymail_stories.tgz",
)
# The split of See et al. 2017, on which published scores are reported.
LIST_URLS = tuple(
    f"https://raw.githubusercontent.com/abisee/cnn-dailymail/master/url_lists/all_{part}.txt"
    for part in ("train", "val", "test")
)
OFFLINE = "Offline, give --source a folder of .story files or the .tgz archives, or train on the built-in --data sample"
SHARD_ROWS = 10_000
_MAX_MEMBERS = 2_000_000
_MAX_RATIO = 100  # news text compresses about threefold
_MIN_BUDGET = 64 * 2**20  # small archives are mostly tar padding
_SAFE_NAME = re.compile(r"[\w.-]{1,120}")

Log = Callable[[str], None]
Split = tuple[str, Example]


def prepare(
    source: str,
    output: Path,
    *,
    urls: tuple[str, ...] = STORY_URLS,
    list_urls: tuple[str, ...] = LIST_URLS,
    url_lists: Path | None = None,
    split: str = "published",
    limit: int | None = None,
    bad: BadRows | None = None,
    log: Log = lambda _: None,
    advance: Callable[[float], None] = lambda _: None,
) -> dict[str, object]:
    """Write ``{train,valid,test}-00000.jsonl.gz`` shards and ``prepared.json``, the account of them.

    Running it again with the same source does nothing; after a kill it goes on with the download.

    Args:
        source: ``stories`` (downloads the two archives), ``hub:NAME``, a ``.tgz``, or anything ``read_examples`` reads.
        output: the folder.
        urls: the archives' addresses, for ``stories``.
        list_urls: addresses of the published split lists, for ``stories``.
        url_lists: a folder with ``all_{train,val,test}.txt`` instead.
        split: "published" or "hash", a stable hash of the id; only for stories and archives.
        limit: at most so many articles of each archive or part.
        bad: what to do with malformed articles.
        log: told what happens, a line at a time.
        advance: told the bytes that were downloaded.

    Raises:
        UserError: without a network, for a damaged or hostile archive, and for malformed articles.
    """
    if split not in ("published", "hash"):
        raise UserError(f"{split!r} is not a way to split", "--split", "Use published or hash")
    bad = BadRows() if bad is None else bad
    request: dict[str, object] = {"source": source, "split": split, "limit": limit, "skip_bad": bad.skip}
    archives: list[Path] = []
    if source == "stories":
        for url in urls:
            log(f"{url} → {output}")
            archives.append(download(url, output / _file_name(url), offline=OFFLINE, advance=advance))
        if split == "published" and url_lists is None:
            url_lists = output
            for url in list_urls:
                fix = "Give their folder with --url-lists, or use --split hash"
                download(url, output / "url_lists" / _file_name(url), offline=fix, advance=advance)
    elif source.endswith((".tgz", ".tar.gz")):
        archives.append(Path(source))
        if not archives[0].is_file():
            raise UserError("there is no such file", source)
    request["archives"] = {path.name: sha256_file(path) for path in archives}
    account = output / "prepared.json"
    if account.is_file() and (done := read_json(account)).get("request") == request:
        log(f"{output} is prepared already")
        return dict(done)
    if archives:
        rows = _split_archives(archives, _parts_of(url_lists, split, archives), limit, bad)
    else:
        rows = ((part, e) for part in SPLITS for e in _part(source, part, limit, bad))
    counts = write_shards(rows, output)
    if not counts:
        raise UserError("no article was found", source)
    result: dict[str, object] = {
        "request": request,
        "articles": {part: counts[part] for part in SPLITS if part in counts},
        "without_article": bad.without_article,
        "skipped": bad.count,
        "first_skipped": bad.first,
    }
    write_json(account, result)
    return result


def _file_name(url: str) -> str:
    name = url.rpartition("/")[2].partition("?")[0]
    if not _SAFE_NAME.fullmatch(name) or name.startswith("."):
        raise UserError("the address does not end in a file name", url)
    return name


def _part(source: str, part: str, limit: int | None, bad: BadRows) -> Iterator[Example]:
    """One part of a source that has parts of its own; a missing one is empty."""
    try:
        yield from read_examples(source, part, limit=limit, bad=bad)
    except UserError as error:
        if f"no {part} part" not in error.what:
            raise


def _parts_of(url_lists: Path | None, split: str, archives: list[Path]) -> Callable[[str], str | None]:
    """A function from id to part; None for an article that is on no list."""
    if split == "hash":
        return hashed_split
    folder = url_lists or archives[0].parent
    folder = folder.parent if folder.name == "url_lists" else folder
    listed = {part: listed_ids(folder, part) for part in SPLITS}
    if any(ids is None for ids in listed.values()):
        raise UserError("holds no url_lists folder", folder, "Give it with --url-lists, or use --split hash")
    return lambda identifier: next((part for part, ids in listed.items() if ids and identifier in ids), None)


def _split_archives(
    archives: list[Path], part_of: Callable[[str], str | None], limit: int | None, bad: BadRows
) -> Iterator[Split]:
    for archive in archives:
        taken = 0
        for name, raw in read_archive(archive):
            identifier = name.removesuffix(".story")
            part = part_of(identifier)
            if part is None:
                continue
            if limit is not None and taken >= limit:
                break
            where = f"{archive}:{name}"
            try:
                article, highlights = parse_story(decode(raw, where))
                if not article:
                    bad.without_article += 1
                    continue
                example = make_example(identifier, article, highlights, where)
            except UserError as error:
                bad.report(error)
                continue
            taken += 1
            yield part, example


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """The ``.story`` files of a gzipped tar: base name and bytes, read from the stream; nothing is unpacked.

    Raises:
        UserError: for a damaged archive, and for one with links, devices, paths that leave the folder, members or a
            whole that are too large for news text.
    """
    try:
        _check_gzip(path)
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for number, member in enumerate(archive):
                where = f"{path}:{member.name[:120]}"
                if number >= _MAX_MEMBERS:
                    raise UserError(f"has more than {_MAX_MEMBERS} members", path, "This is not CNN/DailyMail")
                inside = PurePosixPath(member.name.replace("\\", "/"))
                if inside.is_absolute() or ".." in inside.parts:
                    raise UserError("the path leaves the archive", where, "Do not trust this archive")
                if member.isdir():
                    continue
                if not member.isreg():
                    raise UserError("is a link or a device, not a file", where, "Do not trust this archive")
                if inside.suffix == ".story" and member.size > MAX_TEXT_BYTES:
                    raise UserError("is too large for news text", where, "Do not trust this archive")
                # "._name": the attributes that macOS stores beside each file.
                if inside.suffix != ".story" or inside.name.startswith("._"):
                    continue
                file = archive.extractfile(member)
                assert file is not None  # it is a regular file
                yield inside.name, file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"is damaged ({error})", path, "Delete it and run the command again") from None


def _check_gzip(path: Path) -> None:
    """Read it once to the end: damage anywhere shows before the first article is taken, and so does a bomb."""
    budget = max(_MIN_BUDGET, _MAX_RATIO * path.stat().st_size)
    with gzip.open(path) as stream:
        while block := stream.read(2**20):
            budget -= len(block)
            if budget < 0:
                raise UserError("is too large for news text when unpacked", path, "Do not trust this archive")


def write_shards(rows: Iterable[Split], output: Path, shard_rows: int = SHARD_ROWS) -> Counter[str]:
    """Write rows as gzipped JSONL, a few thousand to a file; all shards appear at the end, together.

    Args:
        rows: (part, example) pairs.
        output: the folder; shards of an earlier preparation are replaced.
        shard_rows: rows to a file.

    Returns:
        The number of articles of each part.
    """
    staging = output / ".preparing"
    shutil.rmtree(staging, ignore_errors=True)
    counts: Counter[str] = Counter()
    files: dict[str, gzip.GzipFile] = {}
    with disk_errors(output):
        staging.mkdir(parents=True)
        try:
            for part, example in rows:
                if counts[part] % shard_rows == 0:
                    if part in files:
                        files[part].close()
                    name = staging / f"{part}-{counts[part] // shard_rows:05d}.jsonl.gz"
                    files[part] = gzip.GzipFile(name, "wb", compresslevel=6, mtime=0)  # equal rows, equal bytes
                row = {
                    "id": example.id,
                    "article": "\n".join(example.sentences),
                    "highlights": "\n".join(example.highlights),
                }
                files[part].write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                counts[part] += 1
            for file in files.values():
                file.close()
            for old in output.glob("*-[0-9][0-9][0-9][0-9][0-9].jsonl.gz"):
                old.unlink()
            for made in sorted(staging.iterdir()):
                made.replace(output / made.name)
        finally:
            for file in files.values():
                file.close()
            shutil.rmtree(staging, ignore_errors=True)
    if any(not (output / f"{part}-00000.jsonl.gz").is_file() for part in counts):
        raise RunFailed("a shard vanished while it was written", output, "Is another process preparing this folder?")
    return counts
