"""Run the main job of every system on its built-in sample; write runs/demo/index.html and print one table.

Each system is a few commands that a user could type. Glue only: what the commands do lives in the packages.
"""

import html
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_plots

from latentlab_shared.cli import Output, guarded, table
from latentlab_shared.errors import RunFailed
from latentlab_shared.files import write_json
from latentlab_shared.plots import html_table, image, write_page
from latentlab_shared.provenance import commit, machine, today

OUT = Path("runs/demo")
BIN = Path(sys.executable).parent
NESTED = ["--set", "memory.sizes=[1,2,4,8]"]  # one model, asked with fewer vectors, too
CONTEXTS = (512, 1024, 2048)  # tokens of documents, for the time to the first token


@dataclass(frozen=True)
class Step:
    """One command; its last JSON object is kept under ``label``."""

    label: str
    command: list[str]


@dataclass(frozen=True)
class System:
    """One system's part of the demo.

    Attributes:
        name: the package.
        title: what it does, in a line.
        steps: the commands, in order.
        figure: from the steps' results, one figure that says something.
        sample: from the steps' results, what went in and what came out.
        plots: files that the steps wrote, with captions.
        draw: from the steps' results, plots that no step draws; files with captions.
    """

    name: str
    title: str
    steps: list[Step]
    figure: Callable[[dict[str, Any]], str]
    sample: Callable[[dict[str, Any]], tuple[str, str]]
    plots: list[tuple[Path, str]]
    draw: Callable[[dict[str, Any]], list[tuple[Path, str]]] = lambda results: []


def _rsr_net(folder: Path) -> System:
    model = ["--model", str(folder)]

    def figure(results: dict[str, Any]) -> str:
        found = results["evaluate"]
        steps, depth = found["steps"], int(found["stopping"]["steps"])
        return f"held-out R² of the summary's embedding {steps[0]['r2']:.2f} → {steps[depth]['r2']:.2f} by refining"

    def sample(results: dict[str, Any]) -> tuple[str, str]:
        made = results["summarize"]
        lines = [
            f"step {s['number']} moved {s['residual']:.3f}, read: {s['reads'][0]['sentence']}" for s in made["steps"]
        ]
        return " ".join(made["sentences"]), "\n".join([made["text"], "", *lines])

    return System(
        "rsr_net",
        "an article → the sentences that its refined summary embedding picks",
        [
            Step("train", ["rsr-net", "train", "--output-dir", str(folder)]),
            Step("evaluate", ["rsr-net", "evaluate", *model]),
            Step("summarize", ["rsr-net", "summarize", "--demo", "--explain", *model]),
        ],
        figure,
        sample,
        [(folder / "plots" / "convergence.png", "The state after each step, on held-out articles")],
    )


def _nrms(folder: Path) -> System:
    model = ["--model", str(folder)]

    def figure(results: dict[str, Any]) -> str:
        auc = {row["name"]: row["metrics"]["auc"] for row in results["evaluate"]["rows"]}
        beside = ", ".join(f"{name} {value:.2f}" for name, value in auc.items() if name != "NRMS")
        return f"AUC {auc['NRMS']:.2f}, beside {beside}"

    def sample(results: dict[str, Any]) -> tuple[str, str]:
        made = results["recommend"]
        answer = [
            f"{item['score']:+.2f}  {item['title']}\n       because of: {item['reasons'][0]['title']}"
            for item in made["items"]
        ]
        return "\n".join(read["title"] for read in made["attention"]), "\n".join(answer)

    return System(
        "nrms",
        "what a reader has read → what the reader may open next, with reasons",
        [
            Step("train", ["nrms", "train", "--output-dir", str(folder)]),
            Step("evaluate", ["nrms", "evaluate", *model]),
            Step("recommend", ["nrms", "recommend", "--history", "N12", "--history", "N40", "-k", "5", *model]),
        ],
        figure,
        sample,
        [(folder / "plots" / "quality.png", "Ranking what readers were shown, on held-out days")],
        lambda results: [
            (
                demo_plots.reasons(results["recommend"], folder / "plots" / "reasons.png"),
                "One reader's ranking: what each article that was read gives to each score",
            )
        ],
    )


def _seq2seq_keras(folder: Path) -> System:
    model = ["--model", str(folder)]

    def figure(results: dict[str, Any]) -> str:
        f1 = {row["name"]: row["metrics"]["f1"] for row in results["evaluate"]["rows"]}
        lead = max((name for name in f1 if name.startswith("lead-")), key=lambda name: f1[name])
        beside = ", ".join(f"{name} {f1[name]:.2f}" for name in (lead, "longest sentence"))
        return f"token F1 {f1['model']:.2f}, beside {beside}"

    def sample(results: dict[str, Any]) -> tuple[str, str]:
        made = results["attention"]
        marked = " ".join(w.upper() if c > 0.5 else w for w, c in zip(made["words"], made["copied"], strict=True))
        return " ".join(made["source"]), f"{made['text']}\n\nin capitals what was copied: {marked}"

    plots = folder / "plots"
    short = ["--limit", "4000", "--set", "train.epochs=5"]
    return System(
        "seq2seq_keras",
        "a few sentences → one, written by an LSTM that can copy",
        [
            Step("train", ["seq2seq-keras", "train", *short, "--output-dir", str(folder)]),
            Step("evaluate", ["seq2seq-keras", "evaluate", "--limit", "100", *model]),
            Step("attention", ["seq2seq-keras", "attention", "--demo", "--output-dir", str(plots), *model]),
        ],
        figure,
        sample,
        [(plots / "attention.png", "What each word of the summary looked at")],
    )


def _clara_absa(folder: Path) -> System:
    model = ["--model", str(folder)]

    def figure(results: dict[str, Any]) -> str:
        accuracy = {row["answers"]: row["accuracy"] for row in results["evaluate"]["answers"]}
        own, prior = accuracy["model"], accuracy["aspect prior"]
        return f"accuracy {own:.2f} from 8 vectors a sentence, beside {prior:.2f} by the aspect alone"

    def sample(results: dict[str, Any]) -> tuple[str, str]:
        made = results["predict"]
        answers = (f"{a['aspect']}: {a['polarity']} ({a['confidence']:.2f})" for a in made["aspects"])
        return made["text"], "\n".join(answers)

    return System(
        "clara_absa",
        "a sentence, compressed to 8 vectors → what it says of each aspect",
        [
            Step("train", ["clara-absa", "train", *NESTED, "--output-dir", str(folder)]),
            Step("evaluate", ["clara-absa", "evaluate", *model]),
            Step("sweep", ["clara-absa", "sweep", *model]),
            Step("predict", ["clara-absa", "predict", "--demo", *model]),
        ],
        figure,
        sample,
        [(folder / "plots" / "confusion.png", "Polarities of held-out aspects, right and answered")],
        lambda results: [
            (
                demo_plots.memory_rates(
                    results["sweep"]["rows"],
                    next(r["accuracy"] for r in results["evaluate"]["answers"] if r["answers"] == "aspect prior"),
                    folder / "plots" / "rates.png",
                ),
                "The same model with fewer vectors: memory against accuracy, on held-out sentences",
            )
        ],
    )


def _refrag(folder: Path) -> System:
    model = ["--model", str(folder)]

    def figure(results: dict[str, Any]) -> str:
        rows = {row["name"]: row for row in results["evaluate"]["results"]}
        gate, full = rows["gate 0.25"], rows["all tokens"]
        return (
            f"right numbers {gate['value']:.0%} from {gate['positions']:.0f} positions in place of "
            f"{full['positions']:.0f}, citations right {gate['cited_right']:.0%}"
        )

    def sample(results: dict[str, Any]) -> tuple[str, str]:
        rows = results["demo"]["answers"]
        return "\n".join(row["question"] for row in rows), "\n".join(row["answer"] for row in rows)

    return System(
        "refrag",
        "a question and documents read as vectors → an answer that cites them",
        [
            Step("train", ["refrag", "train", "--output-dir", str(folder)]),
            Step("evaluate", ["refrag", "evaluate", "--limit", "50", *model]),
            Step("demo", ["refrag", "demo", *model]),
            *(Step(f"ttft {n}", ["refrag", "bench", "ttft", "--context", str(n), "--repeats", "1"]) for n in CONTEXTS),
        ],
        figure,
        sample,
        [(folder / "plots" / "answers.png", "Right answers by how the documents are given")],
        lambda results: [
            (
                demo_plots.first_token(
                    {n: {row["name"]: row for row in results[f"ttft {n}"]["results"]} for n in CONTEXTS},
                    folder / "plots" / "first_token.png",
                ),
                "Time to the first token against the length of the documents (random weights, one round)",
            )
        ],
    )


SYSTEMS = {
    "rsr_net": _rsr_net,
    "seq2seq_keras": _seq2seq_keras,
    "clara_absa": _clara_absa,
    "nrms": _nrms,
    "refrag": _refrag,
}
LONGEST = ("refrag", "clara_absa", "seq2seq_keras", "nrms", "rsr_net")  # the longest begin


def run_system(
    system: System, out: Output, advance: Callable[[float], None], threads: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a system's commands; their results by label, and a row for each with its seconds."""
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
    for step in system.steps:
        shown = " ".join(step.command)
        began = time.perf_counter()
        command = [str(BIN / step.command[0]), *step.command[1:], "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RunFailed(done.stderr.strip() or "it printed nothing", shown)
        results[step.label] = json.loads(done.stdout)
        rows.append({"command": shown, "seconds": round(time.perf_counter() - began, 1)})
        out.log(f"{rows[-1]['seconds']:4.0f} s  {shown}")
        advance(1)
    return results, rows


def run_systems(systems: list[System], out: Output) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Run systems side by side, as many at a time as there are cores; what ``run_system`` returns, by name."""
    cores = os.cpu_count() or 1
    lanes = min(cores, len(systems))
    with (
        out.progress("commands", sum(len(system.steps) for system in systems)) as advance,
        ThreadPoolExecutor(lanes) as pool,
    ):
        running = {
            pool.submit(run_system, system, out, advance, max(1, cores // lanes)): system.name
            for system in sorted(systems, key=lambda system: LONGEST.index(system.name))
        }
        try:
            return {running[done]: done.result() for done in as_completed(running)}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with whole seconds."""
    return [{**row, "seconds": f"{row['seconds']:.0f}"} for row in rows]


def main() -> None:
    """Run everything that is installed."""
    out = Output()
    shutil.rmtree(OUT, ignore_errors=True)
    summary, sections, steps = [], [], []
    systems = [make(OUT / name) for name, make in SYSTEMS.items()]
    for system in systems:
        out.log(f"{system.name}: {system.title}")
    began = time.perf_counter()
    found = run_systems(systems, out)
    for system in systems:
        results, rows = found[system.name]
        given, made = system.sample(results)
        plots = [*system.draw(results), *system.plots]
        steps += [{**row, "result": results[step.label]} for step, row in zip(system.steps, rows, strict=True)]
        seconds = sum(row["seconds"] for row in rows)
        summary.append({"system": system.name, "seconds": round(seconds, 1), "result": system.figure(results)})
        sections.append(
            (
                system.name,
                f"<p>{html.escape(system.title)}. {html.escape(system.figure(results))}.</p>"
                + "".join(image(path, caption) for path, caption in plots)
                + f"<p>In:</p><pre>{html.escape(given)}</pre><p>Out:</p><pre>{html.escape(made)}</pre>"
                + html_table(_shown(rows)),
            )
        )
    minutes = f"{(time.perf_counter() - began) / 60:.1f} minutes in all"
    made_at = f"{today()}, {machine()}, commit {commit(Path(__file__)) or 'none'}"
    lead = f"Every system on its built-in sample, {minutes}. {made_at}."
    page = write_page(
        OUT / "index.html", "Latent Text Lab", lead, [("Summary", html_table(_shown(summary))), *sections]
    )
    write_json(OUT / "results.json", {"systems": summary, "steps": steps})
    out.result({"page": str(page), "systems": summary}, table(summary, title="Latent Text Lab"))
    out.log(f"the page: {page}")


if __name__ == "__main__":
    sys.exit(guarded(main, "-v" in sys.argv[1:]))
