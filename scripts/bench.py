"""Run every benchmark of every package: one JSON file and one page, runs/bench/results.json and index.html.

Each benchmark measures its ratios side by side in one run of its own; this only calls them, and measures how long
``--help`` takes. ``--only NAME`` (may be repeated) runs some; what an earlier run measured is kept beside it. With
``DATA=DIR`` they are those of ``make measure``, on real data where they take any, and count as done there.
"""

import argparse
import html
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure

from latentlab_shared.cli import Output, guarded
from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import read_json, write_json
from latentlab_shared.plots import html_table, write_page
from latentlab_shared.provenance import commit, machine, today

OUT = measure.ROOT / "runs" / "bench"
BIN = Path(sys.executable).parent
COMMANDS = ("rsr-net", "seq2seq-keras", "clara-absa", "nrms", "refrag", "latentlab-cache")
BENCHES = {step.name: step for step in measure.steps() if step.is_bench}
# Options that name real data, or an encoder that comes with it; without them, what is built in is measured.
OF_DATA = {"--data", "--data-dir", "--encoder"}


def words_of(step: measure.Step, on_data: bool) -> list[str]:
    """The command of a benchmark; without real data, its options for these are left out."""
    if on_data:
        return measure.words_of(step, {})
    folder = OUT / "results" / step.package
    folder.mkdir(parents=True, exist_ok=True)
    words = shlex.split(step.command.format(data="", out=folder))
    return [w for w, before in zip(words, ["", *words], strict=False) if not {w, before} & OF_DATA]


def help_times(rounds: int = 5) -> dict[str, Any]:
    """Seconds from the call to the last line of ``--help``, wall and processor: the best of some rounds, in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, found in times.items():
            before, began = os.times(), time.perf_counter()
            subprocess.run([str(BIN / name), "--help"], capture_output=True, check=True)
            wall, after = time.perf_counter() - began, os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            found.append((wall, used))
    rows = []
    for name, found in times.items():
        walls = [wall for wall, _ in found]
        used = min(processor for _, processor in found)
        # Judged by processor time: on a busy machine the wall clock measures the others.
        row = {"name": f"{name} --help", "value": used, "unit": "CPU s", "target": 1.0, "ok": used < 1.0}
        rows.append({**row, "wall, best": min(walls), "wall, median": statistics.median(walls)})
    return {"rows": rows}


def flat(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a benchmark's answer, whatever it calls them."""
    rows: list[dict[str, Any]] = next((result[key] for key in ("rows", "results") if key in result), [])
    return [{"name": row.get("name", ""), **row.get("metrics", row)} for row in rows]


def shown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of their plain values; columns that are empty are left out."""
    plain = [{k: v for k, v in row.items() if v is not None and not isinstance(v, (dict, list))} for row in rows]
    return html_table(plain, list(dict.fromkeys(key for row in plain for key in row)))


def page(held: dict[str, Any]) -> Path:
    """Write the page."""
    missed = [
        f"{name}: {row['name']}"
        for name, part in held.items()
        for row in flat(part["result"])
        if row.get("ok") is False
    ]
    sections = [
        (
            name,
            f"<p><code>{html.escape(part['command'])}</code>, {part['seconds']:.0f} s, {part['date']}, commit "
            f"{html.escape(part['commit'])}, {html.escape(part['machine'])}</p>{shown(flat(part['result']))}",
        )
        for name, part in held.items()
    ]
    found = "".join(f"<li>{html.escape(line)}</li>" for line in missed)
    first = ("Targets that were missed", f"<ul>{found}</ul>" if missed else "<p>None.</p>")
    return write_page(OUT / "index.html", "Benchmarks", "Each ratio was measured side by side.", [first, *sections])


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--only", action="append", default=[], help=f"one of: help, {', '.join(BENCHES)}")
    parser.add_argument("--data", help="folder of the real data; without it, on what is built in")
    given = parser.parse_args()
    if unknown := set(given.only) - {"help", *BENCHES}:
        raise UserError(f"{sorted(unknown)[0]!r} is no benchmark", "--only", f"Use: help, {', '.join(BENCHES)}")
    if given.data:
        measure.use_data(given.data)
    out = Output()
    path = OUT / "results.json"
    held: dict[str, Any] = read_json(path) if path.is_file() else {}
    failed = []
    for name in ["help", *BENCHES]:
        if given.only and name not in given.only:
            continue
        began = time.time()
        if name == "help":
            words = ["python", "scripts/bench.py", "--only", "help"]
            out.log(f"{name}: {shlex.join(words)}")
            result = help_times()
        else:
            step = BENCHES[name]
            words = words_of(step, bool(given.data))
            out.log(f"{name}: {shlex.join(words)}")
            cwd = measure.WORK if given.data else measure.ROOT
            call = [str(BIN / words[0]), *words[1:], "--json"]
            done = subprocess.run(call, stdout=subprocess.PIPE, text=True, cwd=cwd)
            if done.returncode:
                failed.append(name)
                continue
            if given.data:
                measure.ended(step, began)
            result = json.loads(done.stdout)
        facts = {"command": shlex.join(words).replace(f"{measure.ROOT}/", ""), "date": today(), "machine": machine()}
        seconds = round(time.time() - began, 1)
        held[name] = {**facts, "commit": commit(Path(__file__)) or "none", "seconds": seconds, "result": result}
        write_json(path, held)
    out.result({"results": str(path), "page": str(page(held)), "failed": failed}, f"{OUT / 'index.html'}")
    if failed:
        raise RunFailed(f"failed: {', '.join(failed)}", "bench")


if __name__ == "__main__":
    sys.exit(guarded(main, "-v" in sys.argv[1:]))
