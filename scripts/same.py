"""Whether short runs of the systems end in the same bits as at an earlier commit: what was measured there then stands.

`make measure` asks for everything again when a source has changed, a message of an error too. ``make same REV=COMMIT``
trains and evaluates each system briefly at that commit and here, in one thread, and compares every weight and figure.
Of a package where all agree, scripts/measured.json and runs/measure/state.json are told that what was measured of that
commit's sources is of the present ones. Benchmarks are not: bits say nothing of speed.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure

from latentlab_shared.cli import Output, guarded
from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import read_json, write_json

BIN = Path(sys.executable).parent
# Two short commands each: one ends in weights, the other in figures.
PROBES = {
    "rsr_net": (
        "rsr-net train --profile sample --limit 120 -o run",
        "rsr-net evaluate --model run --json",
    ),
    "seq2seq_keras": (
        "seq2seq-keras train --limit 400 --set train.epochs=2 -o run",
        "seq2seq-keras evaluate --model run --limit 60 --beam 2 --json",
    ),
    "clara_absa": (
        "clara-absa train --limit 300 --set train.epochs=2 --set memory.sizes=[2,8] -o run",
        "clara-absa evaluate --model run --json",
    ),
    "nrms": (
        "nrms train --limit 600 -o run",
        "nrms evaluate --model run --json",
    ),
    "refrag": (
        "refrag train --set loop.steps=40 -o run",
        "refrag evaluate --model run --limit 20 --json",
    ),
}
# What differs between two runs of the same bits.
OF_THE_RUN = ("second", "date", "commit")


def sources(root: Path, package: str) -> str:
    """PYTHONPATH of a checkout's shared package and of one other."""
    return f"{root / 'shared' / 'src'}{os.pathsep}{root / 'packages' / package / 'src'}"


def figures(held: Any) -> Any:
    """A result without what tells when, where and how fast it was made."""
    if isinstance(held, dict):
        return {k: figures(v) for k, v in held.items() if not any(name in k for name in OF_THE_RUN)}
    return [figures(one) for one in held] if isinstance(held, list) else held


def outcome(root: Path, package: str, folder: Path) -> dict[str, Any]:
    """What the short commands of a package end in, with the sources of one checkout: hashes of weights, and figures."""
    folder.mkdir(parents=True)
    env = {**os.environ, "PYTHONPATH": sources(root, package), "OMP_NUM_THREADS": "1"}
    printed = ""
    for command in PROBES[package]:
        program, *words = shlex.split(command)
        done = subprocess.run([str(BIN / program), *words], cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RunFailed(f"{command} ended with {done.returncode}: {done.stderr.strip()[-300:]}", root)
        printed = done.stdout
    weights = sorted((folder / "run").rglob("*.safetensors"))
    if not weights:
        raise RunFailed("no weights were written", folder / "run")
    found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}
    return {"weights": found, "figures": figures(json.loads(printed))}


def carried(record: dict[str, Any], package: str, old: str, new: str, rev: str) -> dict[str, Any]:
    """A record in which what was measured of the old sources of a package is of the new ones; benchmarks stay."""
    mine = {step.name for step in measure.steps() if step.package == package and not step.is_bench}
    return {
        name: {**facts, "source": new, "same_as": rev} if name in mine and facts.get("source") == old else facts
        for name, facts in record.items()
    }


def main() -> None:
    """Compare, and write down what agrees."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--rev", required=True, help="the commit whose sources were measured")
    parser.add_argument("--package", action="append", choices=sorted(PROBES), help="may be given many times; else all")
    given = parser.parse_args()
    if measure.git("status", "--porcelain", "--untracked-files=no"):
        raise UserError("files differ from the commit", measure.ROOT, "Commit first, or compare in a clean clone")
    out, rows, differing = Output(), [], []
    try:
        rev = measure.git("rev-parse", "--short=12", "--verify", f"{given.rev}^{{commit}}")
    except UserError:
        raise UserError(f"{given.rev!r} is no commit", "--rev", "With make: REV=COMMIT") from None
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "before"
        measure.git("worktree", "add", "--detach", "--force", str(before), rev)
        try:
            for package in given.package or sorted(PROBES):
                out.log(f"{package}: short runs at {rev} and here")
                old, new = (measure.source_of(package, at) for at in (rev, "HEAD"))
                here = outcome(measure.ROOT, package, Path(temporary) / package / "here")
                there = outcome(before, package, Path(temporary) / package / "there")
                same = here == there
                rows.append({"package": package, "same": same, "weights": len(here["weights"])})
                if not same:
                    differing.append(package)
                    continue
                for path in (measure.RECORD, measure.WORK / "state.json"):
                    if path.is_file():
                        write_json(path, carried(read_json(path), package, old, new, rev))
        finally:
            measure.git("worktree", "remove", "--force", str(before))
    lines = [f"{'same  ' if row['same'] else 'DIFFER'}  {row['package']}" for row in rows]
    out.result({"rev": rev, "packages": rows}, "\n".join(lines))
    if differing:
        raise RunFailed(f"not the same bits as at {rev}: {', '.join(differing)}", "same", "Measure again")


if __name__ == "__main__":
    sys.exit(guarded(main, "-v" in sys.argv[1:]))
