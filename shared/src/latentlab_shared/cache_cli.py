"""``latentlab-cache``: look after embedding caches and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentlab_shared.cli import Output, new_app, run, table, verb
from latentlab_shared.errors import RunFailed

if TYPE_CHECKING:
    from latentlab_shared.embeddings import EmbeddingCache, TokenEmbeddingCache

app = new_app("latentlab-cache", "latentlab-shared", "Look after embedding caches: check, shrink, copy, measure.")

Folder = Annotated[Path, typer.Argument(metavar="CACHE", help="The cache's folder.", show_default=False)]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A .parquet or .safetensors file.", show_default=False)]


@verb(app)
def stats(out: Output, cache: Folder) -> None:
    """What a cache holds: entries, shards, bytes, and what computed its vectors."""
    with _open(cache) as opened:
        found = opened.stats()
    rows = {**found, **{f"fingerprint.{key}": value for key, value in found["fingerprint"].items()}}
    del rows["fingerprint"]
    out.result(found, table([{"name": key, "value": str(value)} for key, value in rows.items()]))


@verb(app)
def verify(
    out: Output,
    cache: Folder,
    repair: Annotated[bool, typer.Option("--repair", help="Drop what is bad; it is computed again.")] = False,
) -> None:
    """Check the index, and every shard's size, type, checksum and values. Exit code 1 if something is bad."""
    with _open(cache, read_only=not repair) as opened:
        faults = opened.verify(repair)
        entries = len(opened)
    result = {"ok": not faults, "repaired": bool(faults) and repair, "entries": entries, "faults": faults}
    lines = [f"{fault.where}: {fault.what} ({fault.entries} entries)" for fault in faults]
    done = f"dropped what was bad; {entries} entries are left" if faults else f"{entries} entries, no fault"
    out.result(result, "\n".join([*lines, done]) if repair or not faults else "\n".join(lines))
    if faults and not repair:
        raise RunFailed(f"the cache has {len(faults)} faults", cache, "Run: latentlab-cache verify --repair")


@verb(app)
def compact(out: Output, cache: Folder) -> None:
    """Merge shards, drop dead rows, remove left-over files. Other processes may read and write meanwhile."""
    with _open(cache, read_only=False) as opened:
        done = opened.compact()
    out.result(
        {"compacted": done},
        f"{done.shards_before} -> {done.shards_after} shards, {done.dropped} dead entries dropped, "
        f"{done.files_removed} files ({done.bytes_removed:,} bytes) removed",
    )


@verb(app, "export")
def export_(out: Output, cache: Folder, file: File) -> None:
    """Write a cache to one Parquet or safetensors file, with its fingerprint."""
    with _open(cache) as opened:
        count = opened.export_to(file)
    out.result({"entries": count, "file": file, "bytes": file.stat().st_size}, f"{count} entries -> {file}")


@verb(app, "import")
def import_(out: Output, file: File, cache: Folder) -> None:
    """Add the entries of an exported file to a cache, which is made if it is not there."""
    from latentlab_shared._portable import read_identity
    from latentlab_shared.embeddings import cache_of

    with cache_of(read_identity(file), cache) as opened:
        new = opened.import_from(file)
        entries = len(opened)
    out.result({"new": new, "entries": entries}, f"{new} new entries, {entries} in all")


@verb(app)
def bench(
    out: Output,
    rows: Annotated[int, typer.Option("--rows", min=100, help="Vectors to write.")] = 100_000,
    dim: Annotated[int, typer.Option("--dim", min=1, help="Components of a vector.")] = 768,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Interleaved runs; medians are reported.")] = 5,
    folder: Annotated[Path | None, typer.Option("--folder", help="Where to write; else a temporary folder.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Write the table to this JSON file too.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the vectors and of the order of reads.")] = 0,
) -> None:
    """Measure the cache beside LMDB, SQLite, one file per text, Arrow IPC and a plain memory map."""
    from latentlab_shared.cache_bench import measure, write

    with out.progress("measuring", None) as advance:
        measured = measure(rows, dim, repeats, seed, folder, lambda: advance(1))
    if output is not None:
        write(measured, output)
    from rich.console import Group

    out.result({"results": measured.results}, Group(table(measured.seconds()), table(measured.ratios())))


def _open(folder: Path, read_only: bool = True) -> EmbeddingCache | TokenEmbeddingCache:
    from latentlab_shared.embeddings import open_cache

    return open_cache(folder, read_only=read_only)


def main() -> None:
    """Run the command."""
    run(app, "latentlab-cache")
