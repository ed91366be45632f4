"""Run folders: everything needed to read, repeat or resume a run, whole at any moment.

config.json  environment.json  metrics.jsonl  checkpoints/{last,best}/  results.json  plots/  README.md
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from latentlab_shared.config import to_dict
from latentlab_shared.errors import RunFailed, UserError, shell_word
from latentlab_shared.files import disk_errors, plain, read_json, sha256_file, sync_dir, write_json, write_text
from latentlab_shared.provenance import environment
from latentlab_shared.trackers import Tracker, check_tracker, make_tracker

_CHECKSUMS = "checksums.json"


class RunFolder:
    """A folder that belongs to one run and one writing process at a time.

    Use ``RunFolder.create`` for a new run and ``RunFolder.resume`` to go on with one; both lock the folder until
    ``close`` (or the end of a ``with`` block). ``RunFolder.read`` opens a finished run without the lock.
    """

    def __init__(self, path: Path, lock: IO[str] | None = None, trackers: Iterable[Tracker] = ()) -> None:
        self.path, self._lock, self._trackers = Path(path), lock, list(trackers)

    # -- opening -------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        config: Any,
        *,
        seed: int,
        data: Mapping[str, str] | None = None,
        packages: Iterable[str] = (),
        overwrite: bool = False,
        track: Iterable[str] = (),
    ) -> RunFolder:
        """Start a run in an empty or absent folder.

        Args:
            path: the folder.
            config: the resolved configuration, a dataclass or a mapping.
            seed: the seed of the run.
            data: a name and a hash (or a description) of each input.
            packages: distributions whose versions are recorded besides the usual ones.
            overwrite: throw an earlier run in this folder away; a folder that holds anything else is never touched.
            track: ``"tensorboard"`` and/or ``"wandb"``.

        Raises:
            UserError: if the folder holds something already, or another process writes to it.
        """
        path = Path(path)
        holds = cls.ensure_free(path, overwrite=overwrite)
        chosen = list(track)
        for name in chosen:
            check_tracker(name)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        for name in holds:
            entry = path / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_json(path / "environment.json", environment(seed, data, packages))
        write_json(path / "config.json", plain(config))  # last: a folder with it is a run that began
        return cls(path, lock, [make_tracker(name, path, config) for name in chosen])

    @classmethod
    def ensure_free(cls, path: Path, *, overwrite: bool = False) -> list[str]:
        """The names that `create` would remove; call it before the work that comes before `create`.

        Raises:
            UserError: if the folder holds something that `create` would refuse to remove.
        """
        path = Path(path)
        standing = next(part for part in (path, *path.absolute().parents) if part.exists())
        if not standing.is_dir():
            raise UserError("a file stands where a folder is needed", standing, "Choose another --output-dir")
        if not os.access(standing, os.W_OK | os.X_OK):
            raise UserError("no permission to write here", standing, "Choose another folder with --output-dir")
        holds = [p.name for p in path.iterdir() if p.name != ".lock"] if path.is_dir() else []
        began = set(holds) - {"environment.json"}  # a kill before config.json leaves that file: no run yet
        if began and not (overwrite and "config.json" in holds):
            fix = (
                f"Go on with --resume {shell_word(path)}, choose another --output-dir, or --overwrite it"
                if "config.json" in holds
                else ""
            )
            raise UserError("the folder is not empty", path, fix or "Choose another --output-dir")
        return holds

    @classmethod
    def resume(cls, path: Path, config: Any = None, track: Iterable[str] = ()) -> RunFolder:
        """Go on with a run; a ``config`` that differs from the run's own is an error that names the keys."""
        run = cls.read(path)
        if config is not None:
            ours, theirs = _flat(plain(config)), _flat(run.config)
            differing = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
            if differing:
                raise UserError(
                    f"the run was started with other values of {', '.join(differing[:5])}",
                    path,
                    "Resume without them, or start a new run in another folder",
                )
        run._lock = _lock(run.path)
        run._trackers = [make_tracker(name, run.path, run.config) for name in track]
        return run

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Open a run to read it; no lock is taken."""
        path = Path(path)
        if not path.is_dir():
            raise UserError("there is no such run folder", path, "Give the folder that `train` wrote")
        if not (path / "config.json").is_file():
            raise UserError("this folder holds no run (config.json is missing)", path)
        return cls(path)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        for tracker in self._trackers:
            tracker.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- what it holds -------------------------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """The configuration the run was started with."""
        held: dict[str, Any] = read_json(self.path / "config.json")
        return held

    @property
    def plots(self) -> Path:
        """The folder of plots, made when it is first asked for."""
        (self.path / "plots").mkdir(exist_ok=True)
        return self.path / "plots"

    def log(self, step: int, **values: float | int | str) -> None:
        """Append one line to ``metrics.jsonl`` (one write call, so that a kill can tear the last line at most)."""
        line = json.dumps({"step": step, **plain(values)}) + "\n"
        with disk_errors(self.path), (self.path / "metrics.jsonl").open("ab") as file:
            file.write(line.encode())
        for tracker in self._trackers:
            tracker.log(step, values)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines logged so far; a line torn by a kill is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        rows = []
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    def rewind(self, step: int) -> None:
        """Drop the metrics after ``step``: a resumed run logs them again."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``: the given values beside the environment they were measured in."""
        env = read_json(self.path / "environment.json")
        write_json(self.path / "results.json", {**results, "environment": env})

    def write_card(self, card: str) -> None:
        """Write the model card, ``README.md``."""
        write_text(self.path / "README.md", card)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self, name: str, write: Callable[[Path], None]) -> Path:
        """Replace checkpoint ``name`` by what ``write`` puts into the folder it is given.

        A kill at any moment leaves the old checkpoint or the new one, whole.
        """
        home = self.path / "checkpoints"
        final, old = home / name, home / f".{name}.old"
        with disk_errors(home):
            home.mkdir(exist_ok=True)
            self._recover(name)
            for left in (old, *home.glob(f".{name}.*.tmp")):
                shutil.rmtree(left, ignore_errors=True)  # a kill may have cut an earlier write or removal short
            temporary = home / f".{name}.{uuid.uuid4().hex}.tmp"
            temporary.mkdir()
            try:
                write(temporary)
                sums = {p.relative_to(temporary).as_posix(): sha256_file(p) for p in _files(temporary)}
                write_json(temporary / _CHECKSUMS, sums)
                for file in _files(temporary):
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
                _swap(temporary, final, old)
                sync_dir(home)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return final

    def checkpoint(self, name: str = "last") -> Path | None:
        """The folder of checkpoint ``name``, its checksums verified; None if there is none.

        Raises:
            RunFailed: if a file of the checkpoint is missing or altered.
        """
        final = self._recover(name)
        if final is None:
            return None
        sums = read_json(final / _CHECKSUMS)
        for file, expected in sums.items():
            path = final / file
            if not path.is_file() or sha256_file(path) != expected:
                raise RunFailed("a file of the checkpoint is damaged", path, "Delete the checkpoint and train again")
        return final

    def _recover(self, name: str) -> Path | None:
        """Undo a swap that a kill cut short, and return the checkpoint's folder if there is one."""
        home = self.path / "checkpoints"
        final, old = home / name, home / f".{name}.old"
        if not final.exists() and old.exists():
            os.replace(old, final)
        return final if final.is_dir() else None


def trained_on(model: Path) -> str:
    """The data that a run, or the run of a model folder in it, was given: "sample" for generated; "" if unknown."""
    for folder in (model, model.parent):
        if (folder / "config.json").is_file() and (folder / "environment.json").is_file():
            held = read_json(folder / "config.json")
            return str(held.get("data", "")) if isinstance(held, dict) else ""
    return ""


def _swap(new: Path, final: Path, old: Path) -> None:
    """Put folder ``new`` in the place of ``final``, which is kept as ``old``."""
    for _ in range(100):
        if final.exists():
            os.replace(final, old)
        try:
            os.replace(new, final)
            return
        except OSError as error:
            # A reader that came between the two renames has put the old folder back.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise RunFailed("the checkpoint is taken back by a reader again and again", final, "Stop the reading process")


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix[:-1]: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}{key}.").items()}


def _lock(path: Path) -> IO[str]:
    """Take the folder's lock; the system releases it when the process ends, however it ends."""
    file = (path / ".lock").open("a")
    if os.name != "nt":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UserError(
                "another process is writing to this run", path, "Wait for it, or choose another folder"
            ) from None
    return file


def model_card(title: str, summary: str, sections: Mapping[str, str], run: RunFolder) -> str:
    """A model card in Markdown; the configuration and the environment are added at its end."""
    parts = [f"# {title}", summary, *(f"## {name}\n\n{text.strip()}" for name, text in sections.items())]
    env = read_json(run.path / "environment.json")
    facts = "\n".join(f"- {key}: {env[key]}" for key in ("date", "command", "seed", "commit", "python", "machine"))
    config = json.dumps(to_dict(run.config), indent=2)
    parts += [f"## Technical specifications\n\n{facts}\n\n```json\n{config}\n```"]
    return "\n\n".join(parts) + "\n"
