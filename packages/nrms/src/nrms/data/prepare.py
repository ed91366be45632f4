"""Any source → a data folder: ``train``, ``dev`` and perhaps ``test``, each with ``news.tsv`` and ``behaviors.tsv``."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from latentlab_shared.download import download
from latentlab_shared.errors import UserError
from latentlab_shared.files import ZIP_ERRORS, atomic_path, disk_errors, read_json, sha256_file, write_json
from nrms.data.dkn import dkn_articles, dkn_impressions, read_dkn, user_folds
from nrms.data.events import read_events_folder
from nrms.data.mind import (
    BEHAVIORS_FILE,
    NEWS_FILE,
    behaviors_row,
    news_row,
    read_behaviors,
    read_news,
)
from nrms.data.rows import BadRows
from nrms.data.types import Impression, News

# The mirror that Microsoft's own `recommenders` package names; the data set's licence has to be accepted there.
MIND_URL = "https://huggingface.co/datasets/Recommenders/MIND/resolve/main/{name}.zip"
MIND_SETS: dict[str, tuple[str, ...]] = {
    "MINDdemo": ("train", "dev"),
    "MINDsmall": ("train", "dev"),
    "MINDlarge": ("train", "dev", "test"),
}
OFFLINE = "Offline, give --source a folder with news.tsv and behaviors.tsv, or train on the built-in --data sample"
_MAX_BYTES = 8 * 2**30  # MIND-large's largest part has 1.5 GB
_MAX_RATIO = 100

Download = Callable[[str, Path], Path]
Log = Callable[[str], None]


def fetch_archive(url: str, target: Path) -> Path:
    """Download one of MIND's archives; an interrupted download is taken up again."""
    return download(url, target, offline=OFFLINE)


def prepare(
    source: str,
    output: Path,
    *,
    fetch: Download = fetch_archive,
    bad: BadRows | None = None,
    limit: int | None = None,
    seed: int = 0,
    log: Log = lambda _: None,
) -> dict[str, Any]:
    """Make a data folder; running it again with the same source does nothing, after a kill it goes on.

    Args:
        source: ``MINDdemo``, ``MINDsmall`` or ``MINDlarge`` (downloaded); a folder with MIND's files, of which the last
            fifth in time becomes the dev part, or with ``train`` and ``dev`` folders of them; a folder with
            ``articles.tsv`` and ``events.tsv``; or ``dkn:FILE``, the Bing log that comes with DKN.
        output: the folder.
        fetch: downloads (url, target) with resume and checksum, and returns the target.
        bad: what to do with malformed rows.
        limit: at most so many impressions of each part.
        seed: of what is drawn where a source has no parts or no negatives of its own.
        log: told what happens, a line at a time.

    Returns:
        The account that is also written to ``prepared.json``.

    Raises:
        UserError: for a source of no known form, a damaged archive, and bad rows.
        NeedsNetwork: when the host cannot be reached.
    """
    bad = BadRows() if bad is None else bad
    if source in MIND_SETS:
        archives = {}
        for part in MIND_SETS[source]:
            name = f"{source}_{part}"
            log(f"{name} → {output}")
            archives[part] = fetch(MIND_URL.format(name=name), output / "downloads" / f"{name}.zip")
        inputs = list(archives.values())
    else:
        inputs = _inputs(source)
    hashes = {path.name if path.parent == output / "downloads" else str(path): sha256_file(path) for path in inputs}
    request = {"source": source, "limit": limit, "skip_bad": bad.skip, "seed": seed, "files": hashes}
    account = output / "prepared.json"
    done = read_json(account) if account.is_file() else {}
    if done.get("request") == request:
        log(f"{output} is prepared already")
        return dict(done)
    before = done.get("impressions", {})  # parts of an earlier source
    counts: dict[str, int] = {}
    fresh = not output.exists()
    staged = output / ".parts"  # nothing is replaced before everything has been read
    shutil.rmtree(staged, ignore_errors=True)
    try:
        if source in MIND_SETS:
            for part, archive in archives.items():
                unpacked = output / "downloads" / part
                _unpack(archive, unpacked)
                counts[part] = _copy_part(unpacked, staged / part, bad, limit)
                shutil.rmtree(unpacked)
        else:
            for part, news, impressions in _parts(source, bad, seed):
                counts[part] = write_part(staged / part, news, _limited(impressions, limit))
        if not any(counts.values()):
            raise UserError("no impression was found", source)
        account.unlink(missing_ok=True)  # a kill from here on leaves parts of two sources: prepared no more
        for part in ("train", "dev", "test"):
            if (staged / part).is_dir():
                shutil.rmtree(output / part, ignore_errors=True)
                os.replace(staged / part, output / part)
            elif part in before:
                shutil.rmtree(output / part, ignore_errors=True)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if fresh and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
    result = {"request": request, "impressions": counts, "notes": bad.summary(), "first_skipped": bad.first}
    write_json(account, result)
    return result


def write_part(folder: Path, news: Iterable[News], impressions: Iterable[Impression]) -> int:
    """Write one part in MIND's form; returns the number of impressions."""
    count = 0
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / NEWS_FILE) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{news_row(article)}\n" for article in news)
    with atomic_path(folder / BEHAVIORS_FILE) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for impression in impressions:
            file.write(f"{behaviors_row(impression)}\n")
            count += 1
    return count


def _limited(impressions: Iterable[Impression], limit: int | None) -> Iterator[Impression]:
    from itertools import islice

    return islice(impressions, limit)


def _inputs(source: str) -> list[Path]:
    """The files that a local source is read from."""
    path = Path(source.removeprefix("dkn:"))
    if source.startswith("dkn:"):
        path = path / "raw_train.txt" if path.is_dir() else path
        if not path.is_file():
            raise UserError("there is no such file", path, "Give the log as dkn:FILE")
        return [path]
    if not path.is_dir():
        fix = f"Give a folder, dkn:FILE, or one of {', '.join(MIND_SETS)}"
        raise UserError("there is no such source", source, fix)
    found = sorted(p for p in path.rglob("*") if p.suffix in (".tsv", ".zip"))
    if not found:
        raise UserError("holds no .tsv file", path, "MIND's folders hold news.tsv and behaviors.tsv")
    return found


def _parts(source: str, bad: BadRows, seed: int) -> Iterator[tuple[str, Iterable[News], Iterable[Impression]]]:
    """The parts of a local source: name, catalogue, impressions."""
    if source.startswith("dkn:"):
        rows = read_dkn(_inputs(source)[0], bad)
        news = dkn_articles(rows)
        folds = user_folds(dkn_impressions(rows, news), 5, seed)
        yield "train", news, [i for fold in folds[1:] for i in fold]
        yield "dev", news, folds[0]
        return
    folder = Path(source)
    if (folder / "events.tsv").is_file():
        yield from read_events_folder(folder, bad, seed)
        return
    parts = {part: folder / part for part in ("train", "dev", "test") if (folder / part).is_dir()}
    if (folder / BEHAVIORS_FILE).is_file() and (folder / NEWS_FILE).is_file():
        news, late = list(read_news(folder / NEWS_FILE, bad)), _last_fifth(folder / BEHAVIORS_FILE, bad.skip)
        for part, wanted in (("train", False), ("dev", True)):
            shown = read_behaviors(folder / BEHAVIORS_FILE, bad if wanted else BadRows(skip=bad.skip))
            yield part, news, (each for each, is_late in zip(shown, late, strict=True) if is_late == wanted)
        return
    if not parts:
        raise UserError("has neither train and dev folders nor behaviors.tsv", folder, "Is it one folder too high?")
    for part, home in parts.items():
        for name in (NEWS_FILE, BEHAVIORS_FILE):
            if not (home / name).is_file():
                raise UserError(f"holds no {name}", home)
        yield part, read_news(home / NEWS_FILE, bad), read_behaviors(home / BEHAVIORS_FILE, bad)


def _last_fifth(path: Path, skip: bool) -> list[bool]:
    """Which impressions of a file are the last fifth in time, the dev part of a log that is not split."""
    times = [impression.time for impression in read_behaviors(path, BadRows(skip=skip))]
    order = sorted(range(len(times)), key=times.__getitem__)
    late = [False] * len(times)
    for row in order[int(0.8 * len(times)) :]:
        late[row] = True
    return late


def _copy_part(folder: Path, target: Path, bad: BadRows, limit: int | None) -> int:
    """Check a part row by row on its way into the data folder."""
    news, impressions = read_news(folder / NEWS_FILE, bad), read_behaviors(folder / BEHAVIORS_FILE, bad)
    return write_part(target, news, _limited(impressions, limit))


def _unpack(archive: Path, target: Path) -> None:
    """Take the two files out of a zip, and nothing else."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as held:
            members = {PurePosixPath(m.filename).name: m for m in held.infolist() if not m.is_dir()}
            for name in (NEWS_FILE, BEHAVIORS_FILE):
                if name not in members:
                    raise UserError(f"holds no {name}", archive, "Delete it and run the command again")
                member = members[name]
                if member.file_size > _MAX_BYTES or member.file_size > _MAX_RATIO * max(member.compress_size, 1):
                    raise UserError(f"{name} is too large", archive, "Do not trust this archive")
                with disk_errors(target):
                    target.mkdir(parents=True, exist_ok=True)
                    with held.open(member) as source, (target / name).open("wb") as file:
                        shutil.copyfileobj(source, file)
    except ZIP_ERRORS as error:
        raise UserError(f"is damaged ({error})", archive, "Delete it and run the command again") from None
