"""Any source → one folder of JSONL shards: downloads, reads archives without unpacking them, splits, counts."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from latentlab_shared.download import download
from latentlab_shared.errors import UserError
from latentlab_shared.files import check_gzip, disk_errors, read_json, sha256_file, write_json
from rsr_net.data.readers import (
    MAX_RATIO,
    MAX_TEXT_BYTES,
    MIN_BUDGET,
    BadRows,
    check_regular,
    decode,
    read_examples,
    source_files,
    split_files,
)
from rsr_net.data.stories import SPLITS, hashed_split, listed_ids, make_example, parse_story, printable
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
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.jsonl\.gz")
_SAFE_NAME = re.compile(r"[\w.-]{1,120}")

_ACCOUNT = "prepared.json"

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

    Running it again on unchanged inputs and outputs does nothing; after a kill it goes on with the download.

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
        UserError: without a network, for a damaged or hostile archive, for malformed articles, and for a folder that
            is the source itself or holds data of another origin.
    """
    if split not in ("published", "hash"):
        raise UserError(f"{split!r} is not a way to split", "--split", "Use published or hash")
    bad = BadRows() if bad is None else bad
    _check_output(source, output)
    request: dict[str, object] = {"source": source, "split": split, "limit": limit, "skip_bad": bad.skip}
    with _no_empty_folders(output):
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
            check_regular(archives[0])
        request["inputs"] = _inputs(source, archives, url_lists, split)
        before = _account(output)
        if before.get("request") == request and _intact(before, output):
            log(f"{output} is prepared already")
            return before
        if archives:
            rows = _split_archives(archives, _parts_of(url_lists, split, archives), limit, bad)
        else:
            rows = ((part, e) for part in SPLITS for e in _part(source, part, limit, bad))
        with disk_errors(output), _shards(rows, output) as (staging, counts):
            if not counts:
                raise UserError("no article was found", source)
            made = sorted(staging.iterdir())
            result: dict[str, object] = {
                "request": request,
                "articles": {part: counts[part] for part in SPLITS if part in counts},
                "without_article": bad.without_article,
                "skipped": bad.count,
                "first_skipped": bad.first,
                "shards": {path.name: sha256_file(path) for path in made},
            }
            for name in _own_shards(before):
                (output / name).unlink(missing_ok=True)
            write_json(output / _ACCOUNT, result)  # first: a kill from here on leaves shards that are known as ours
            for path in made:
                path.replace(output / path.name)
    return result


def _check_output(source: str, output: Path) -> None:
    """Refuse a folder whose content would be read as data beside, or instead of, what is written."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError("is a file, not a folder", output, "Choose another --output-dir")
    if source not in ("stories",) and not source.startswith("hub:") and Path(source).resolve() == output.resolve():
        raise UserError("the source and the output are the same folder", output, "Choose another --output-dir")
    own = _own_shards(_account(output))
    foreign = [path.name for paths in split_files(output).values() for path in paths if path.name not in own]
    if foreign:
        what = f"holds {min(foreign)}, which `prepare` did not write"
        raise UserError(what, output, "Choose another --output-dir, or move it away")


def _account(output: Path) -> dict[str, object]:
    """What an earlier preparation wrote about itself; nothing where there is none that can be read."""
    if not (output / _ACCOUNT).is_file():
        return {}
    found = read_json(output / _ACCOUNT)
    return found if isinstance(found, dict) else {}


def _own_shards(account: dict[str, object]) -> dict[str, str]:
    """Names and checksums of the shards of an account; only names that shards have."""
    shards = account.get("shards")
    return {k: v for k, v in shards.items() if _SHARD.fullmatch(k)} if isinstance(shards, dict) else {}


def _intact(account: dict[str, object], output: Path) -> bool:
    """Whether every shard is there as it was written."""
    shards = _own_shards(account)
    return bool(shards) and all(
        (output / name).is_file() and sha256_file(output / name) == digest for name, digest in shards.items()
    )


def _inputs(source: str, archives: list[Path], url_lists: Path | None, split: str) -> dict[str, object]:
    """How many files are read, and one checksum of their names and contents; none of a hub's."""
    if archives:
        folder = _list_folder(url_lists, archives) / "url_lists"
        paths = [*archives, *(sorted(folder.glob("*.txt")) if split == "published" else ())]
    else:
        paths = [] if source.startswith("hub:") or not Path(source).exists() else source_files(Path(source))
    found = hashlib.sha256()
    for path in paths:
        check_regular(path)
        found.update(f"{printable(path.name)}\0{sha256_file(path)}\n".encode())
    return {"files": len(paths), "sha256": found.hexdigest()}


@contextmanager
def _no_empty_folders(output: Path) -> Iterator[None]:
    """When the block fails, take away the folders it made and left empty."""
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # of one that is not empty
            for folder in made:
                folder.rmdir()
        raise


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
    folder = _list_folder(url_lists, archives)
    listed = {part: listed_ids(folder, part) for part in SPLITS}
    if any(ids is None for ids in listed.values()):
        raise UserError("holds no url_lists folder", folder, "Give it with --url-lists, or use --split hash")
    return lambda identifier: next((part for part, ids in listed.items() if ids and identifier in ids), None)


def _list_folder(url_lists: Path | None, archives: list[Path]) -> Path:
    """The folder that holds ``url_lists``."""
    folder = url_lists or archives[0].parent
    return folder.parent if folder.name == "url_lists" else folder


def _split_archives(
    archives: list[Path], part_of: Callable[[str], str | None], limit: int | None, bad: BadRows
) -> Iterator[Split]:
    for archive in archives:
        taken = 0
        for name, raw in read_archive(archive):
            identifier = printable(name.removesuffix(".story"))
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
        check_gzip(path, MAX_RATIO, MIN_BUDGET)
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


@contextmanager
def _shards(rows: Iterable[Split], output: Path) -> Iterator[tuple[Path, Counter[str]]]:
    """Rows as gzipped JSONL, a few thousand to a file, in a folder beside their place that goes with the block.

    Args:
        rows: (part, example) pairs.
        output: where the folder is made.

    Yields:
        The folder, and the number of articles of each part.
    """
    staging = output / ".preparing"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    counts: Counter[str] = Counter()
    files: dict[str, gzip.GzipFile] = {}
    try:
        for part, example in rows:
            if counts[part] % SHARD_ROWS == 0:
                if part in files:
                    files[part].close()
                name = staging / f"{part}-{counts[part] // SHARD_ROWS:05d}.jsonl.gz"
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
        yield staging, counts
    finally:
        for file in files.values():
            file.close()
        shutil.rmtree(staging, ignore_errors=True)
