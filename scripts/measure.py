"""Measure every table of every README again: the trainings and evaluations on real data, one after the other.

``make measure DATA=DIR`` runs in runs/measure what has no result yet, or one of other sources. It takes hours, and can
be stopped and called again: an interrupted training goes on. ``--only NAME`` runs one package or step, ``--list`` says
what is done, ``--collect`` copies the results into the packages, fills the tables, and notes in measured.json which
steps they are of and of what sources; another clone does not repeat these, and scripts/same.py may carry them over a
change of the sources. The checkout has to be clean, or the results would name a commit that they are not of.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from latentlab_shared.cli import Output, guarded
from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs" / "measure"
RECORD = ROOT / "scripts" / "measured.json"
PEOPLE = {"rsr-net": "rsr_net", "seq2seq-keras": "seq2seq_keras", "clara-absa": "clara_absa"}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of the step.
        command: {data} is the folder of real data, {out} where its package's results go.
        after: steps whose output it reads.
        makes: the run folder of a training, which an interrupted one leaves behind.
    """

    name: str
    command: str
    after: tuple[str, ...] = ()
    makes: str = ""

    @property
    def is_bench(self) -> bool:
        """Whether it measures speed or size, and runs without real data as well."""
        return self.command.split()[1] == "bench"

    @property
    def package(self) -> str:
        """The package whose command it is; "shared" for the cache's."""
        program = self.command.split()[0]
        return "shared" if program == "latentlab-cache" else PEOPLE.get(program, program)


def steps() -> list[Step]:
    """All of them, in an order in which each finds what it needs."""
    found = [Step("cache", "latentlab-cache bench --repeats 5 --output {out}/cache.json")]
    folds = "rsr-net folds --data {data}/cnndm --work-dir rsr_folds -o {out} --encoder"
    found += [Step(f"rsr_{e}", f"{folds} {e} --seeds 3") for e in ("lsa", "minilm")]
    found += [
        Step("rsr_ablation", f"{folds} lsa --seeds 1 --ablate 1", ("rsr_lsa",)),
        Step("rsr_bench", "rsr-net bench --data {data}/cnndm/train.jsonl.gz --encoder minilm -o {out}"),
        Step("nrms_folds", "nrms evaluate --folds {data}/dkn_news -o {out}"),
    ]
    for suite in ("quality", "work", "memory", "latency", "graph", "http", "pgvector", "embed", "load"):
        peer = " --peer recommenders" if suite in ("quality", "work") else ""
        found.append(Step(f"nrms_{suite}", f"nrms bench --suite {suite}{peer} -o {{out}}"))
    return [*found, *_seq2seq(), *_clara(), *_refrag()]


def _seq2seq() -> list[Step]:
    train, measure = "seq2seq-keras train --data {data}", "seq2seq-keras evaluate --model"
    wide = "--set data.max_source=70"
    ablate = "seq2seq-keras ablate --set model.units=128 --set train.epochs=3"
    best = "--beam 4 --set decode.no_repeat_ngram=1"
    return [
        Step("s2s_sample_train", "seq2seq-keras train -o s2s_sample", makes="s2s_sample"),
        Step(
            "s2s_sample",
            f"{measure} s2s_sample --table {{out}}/sample.json --name 'pointer, greedy'",
            ("s2s_sample_train",),
        ),
        Step(
            "s2s_reuters_train",
            f"{train}/reuters21578 {wide} --set train.epochs=12 --set train.patience=3 -o s2s_reuters",
            makes="s2s_reuters",
        ),
        Step(
            "s2s_reuters_greedy",
            f"{measure} s2s_reuters --table {{out}}/reuters.json --name 'pointer, greedy'",
            ("s2s_reuters_train",),
        ),
        Step(
            "s2s_reuters",
            f"{measure} s2s_reuters {best} --table {{out}}/reuters.json --name 'pointer, beam 4'",
            ("s2s_reuters_greedy",),
        ),
        Step(
            "s2s_tv_train",
            f"{train}/tv_news --set data.label_scoring=sum {wide} --set train.epochs=1 -o s2s_tv",
            makes="s2s_tv",
        ),
        Step(
            "s2s_tv",
            f"{measure} s2s_tv --limit 2000 --table {{out}}/tv.json --name 'pointer, 1 epoch'",
            ("s2s_tv_train",),
        ),
        Step("s2s_tv_more", "seq2seq-keras train --resume s2s_tv --set train.epochs=2", ("s2s_tv",)),
        Step(
            "s2s_tv_2",
            f"{measure} s2s_tv --limit 2000 --table {{out}}/tv.json --name 'pointer, 2 epochs'",
            ("s2s_tv_more",),
        ),
        Step(
            "s2s_tv_seed",
            f"{measure} s2s_tv --protocol seed --limit 500 --table {{out}}/tv_seed.json --name 'pointer, 2 epochs'",
            ("s2s_tv_2",),
        ),
        Step(
            "s2s_baselines",
            "seq2seq-keras baselines --data {data}/tv_news --limit 2000 --table {out}/baselines_tv_mean.json",
        ),
        Step(
            "s2s_baselines_seed",
            "seq2seq-keras baselines --data {data}/tv_news --limit 2000 --protocol seed "
            "--table {out}/baselines_tv_seed.json",
        ),
        Step("s2s_ablation", f"{ablate} --limit 2000 --table {{out}}/ablation_sample.json -o s2s_ablation"),
        Step(
            "s2s_ablation_reuters",
            f"{ablate} --data {{data}}/reuters21578 --limit 4000 --texts 500 --variant seed --variant masked "
            f"--variant pointer {wide} --table {{out}}/ablation_reuters.json -o s2s_ablation_reuters",
        ),
        Step("s2s_bench", "seq2seq-keras bench --table {out}/bench.json"),
    ]


def _clara() -> list[Step]:
    data, plain = "--data {data}/mams", "--set memory.reader=none --set memory.start=pooled --set memory.window=null"
    found = [Step("clara_lm", f"clara-absa pretrain {data} --width 256 -o lm", makes="lm")]

    def scratch(name: str, seed: int, more: str = "") -> Step:
        command = f"clara-absa train --profile scratch {data} --backbone lm/backbone --seed {seed} -o {name} {more}"
        return Step(f"clara_{name}", command.strip(), ("clara_lm",), name)

    nested = "--set memory.tokens=16 --set memory.sizes=[2,4,8,16] --set train.epochs=12"
    found += [scratch(f"scratch_{seed}", seed) for seed in range(3)]
    found += [scratch(f"none_{seed}", seed, f"{plain} --set loss.mark=0") for seed in range(3)]
    for seed in range(3):
        train = f"clara-absa train --profile light {data} --seed {seed} -o light_{seed} --set train.precision=bf16"
        found.append(Step(f"clara_light_{seed}", train, makes=f"light_{seed}"))
    runs = [f"{kind}_{seed}" for kind in ("scratch", "none", "light") for seed in range(3)]
    found.append(
        Step("clara_answers", f"clara-absa compare {' '.join(runs)} -o {{out}}", tuple(f"clara_{r}" for r in runs))
    )
    single = [f"k{k}_{seed}" for k in (2, 4, 16) for seed in range(2)]
    found += [scratch(name, int(name[-1]), f"--set memory.tokens={name[1:-2]}") for name in single]
    found += [scratch(f"nested_{seed}", seed, nested) for seed in range(2)]
    beside = [*single, "scratch_0", "scratch_1"]
    swept = ["--model nested_0", "--also nested_1", *(f"--beside {name}" for name in beside)]
    needs = tuple(f"clara_{name}" for name in (*beside, "nested_0", "nested_1"))
    bench = f"clara-absa bench {data} --sentences 32 --repeats 3 --vocabulary 4000 -o {{out}}"
    return [
        *found,
        Step("clara_sweep", f"clara-absa sweep {' '.join(swept)} -o {{out}}", needs),
        Step("clara_bench", bench),
    ]


def _refrag() -> list[Step]:
    wiki, stories = "rf_data/corpus_{}.jsonl.gz", "rf_stories/corpus_{}.jsonl.gz"
    fast = "--set loop.beta2=0.98"
    first = f"--set decoder_training=full --set rates=[8,16] --set context=16 --set target=8 --set whole=0.12 {fast}"
    first += " --set loop.batch_size=16 --set loop.bf16=true"
    twin = "--encoder twin --decoder {data}/stories260k"
    spans = "--compression 8 --compression 16 --context 128 --target 64"
    chunks = "--compression 8 --chunks 1 --chunks 4 --chunks 16 --limit 40"

    def train(name: str, stage: str, data: str, more: str, after: str) -> Step:
        command = f"refrag train --stage {stage} --data {data.format('train')} {more} -o rf_{name}"
        return Step(f"refrag_{name}", command, (f"refrag_{after}",), f"rf_{name}")

    def read(name: str, task: str, more: str, after: str) -> Step:
        return Step(f"refrag_{name}", f"refrag evaluate {task} {more} -o {{out}} --name {name}", (f"refrag_{after}",))

    found = [
        Step("refrag_sample", "refrag train -o rf_sample", makes="rf_sample"),
        read("questions", "--model rf_sample", "--limit 100 --expand 0.1 --expand 0.25 --expand 0.5", "sample"),
        read("citations", "--model rf_sample", "--limit 200 --seed 2 --select gate", "sample"),
        Step("refrag_data", "refrag prepare --source {data} -o rf_data"),
        Step(
            "refrag_decoder",
            f"refrag pretrain-decoder --data {wiki.format('train')} --set copying=true --set vocabulary=2048 "
            "--set width=320 --set heads=5 --set layers=4 --set positions=1024 --set loop.steps=300 "
            "--set loop.batch_size=8 --set loop.learning_rate=0.002 --set loop.weight_decay=0.05 --set loop.bf16=true "
            "-o rf_decoder",
            ("refrag_data",),
            "rf_decoder",
        ),
    ]
    begin = "--encoder twin --decoder rf_decoder/decoder --set loop.steps=260 --set loop.learning_rate=0.0015"
    further = "--set loop.steps={} --set loop.learning_rate=0.001"
    written = "--set training_model=pe --set longest=5 --set loop.steps=400 --set loop.batch_size=16"
    asked = "--set decoder_training=full --set training_model=ped --set gate_examples=10 --set loop.steps=300"
    found += [
        train("first", "pretraining", wiki, f"{begin} {first}", "decoder"),
        train("second", "pretraining", wiki, f"--model rf_first {further.format(900)} {first}", "first"),
        train("third", "pretraining", wiki, f"--model rf_second {further.format(800)} {first}", "second"),
        read(
            "perplexity_wiki",
            "--task perplexity --model rf_third",
            f"--data {wiki.format('valid')} {spans} --decoder rf_decoder/decoder --limit 250",
            "third",
        ),
        train(
            "nq",
            "questions",
            "rf_data/questions_{}.jsonl.gz",
            f"--model rf_third {asked} --set loop.batch_size=8 --set loop.learning_rate=0.0008 {fast} "
            "--set loop.bf16=true",
            "third",
        ),
        read("questions_nq", "--model rf_nq", "--data rf_data/questions_valid.jsonl.gz --expand 0.25", "nq"),
        Step("refrag_stories", "refrag prepare --written-by {data}/stories260k --limit 3000 -o rf_stories"),
        train(
            "rebuilt",
            "reconstruction",
            stories,
            f"{twin} --set decoder_training=full --set training_model=pe --set rates=[8,16] --set longest=3 "
            f"--set loop.steps=300 --set loop.batch_size=32 --set loop.learning_rate=0.004 {fast}",
            "stories",
        ),
        train(
            "pretrained",
            "pretraining",
            stories,
            "--model rf_rebuilt --set rates=[8,16] --set context=16 --set target=8 --set whole=0.1 "
            f"--set loop.steps=800 --set loop.learning_rate=0.003 {fast}",
            "rebuilt",
        ),
        read(
            "perplexity_stories",
            "--task perplexity --model rf_pretrained",
            f"--data {stories.format('valid')} {spans} --decoder {{data}}/stories260k",
            "pretrained",
        ),
    ]
    for lengths in ("curriculum", "longest", "mixed"):
        more = f"{twin} {written} --set lengths={lengths} --set loop.learning_rate=0.003 {fast}"
        model = f"--task reconstruction --model rf_{lengths}"
        found += [
            train(lengths, "reconstruction", stories, more, "stories"),
            read(f"reconstruction_{lengths}", model, f"--data {stories.format('valid')} {chunks}", lengths),
        ]
    benches = {
        "align": "--data-dir {data}",
        "ttft": "--repeats 15",
        "memory": "--repeats 2",
        "step": "--repeats 5",
        "serve": "--streams 50 --workers 1",
    }
    return [*found, *(Step(f"refrag_{n}", f"refrag bench {n} {more} -o {{out}}") for n, more in benches.items())]


@cache
def source_of(package: str, at: str = "HEAD") -> str:
    """What decides a package's results: the trees of its sources and of what is shared, at a commit."""
    folders = ["shared/src", *([f"packages/{package}/src"] if package != "shared" else [])]
    return " ".join(git("rev-parse", f"{at}:{folder}")[:12] for folder in folders)


def git(*words: str) -> str:
    """What git says about this checkout."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError("this is no checkout", ROOT, "Clone the repository: results name a commit")
    return done.stdout.strip()


def is_done(step: Step, state: dict[str, Any], found: dict[str, Step]) -> bool:
    """Whether a step's result is of the present sources, and later than what it reads."""
    mine = state.get(step.name, {})
    if mine.get("source") != source_of(step.package) or not mine.get("ended"):
        return False
    return all(is_done(found[name], state, found) and state[name]["ended"] <= mine["ended"] for name in step.after)


def steps_to_run(
    chosen: list[Step], recorded: dict[str, Any], state: dict[str, Any], found: dict[str, Step]
) -> list[Step]:
    """Those of ``chosen`` without a result, and those that they read and that were run in another clone only."""
    wanted: list[Step] = []
    for step in reversed(chosen):
        read = any(step.name in other.after for other in wanted)
        if not is_done(step, state, found) and (read or not is_done(step, recorded, found)):
            wanted.insert(0, step)
    return wanted


def words_of(step: Step, state: dict[str, Any]) -> list[str]:
    """The command of a step; an interrupted training of the same sources goes on instead of beginning anew.

    Its paths are relative to runs/measure: results name their command, and no folder of this machine.
    """
    folder = WORK / step.makes
    if step.makes and folder.is_dir():
        if state.get(step.name, {}).get("source") == source_of(step.package) and (folder / "checkpoints").is_dir():
            return [*shlex.split(step.command)[:2], "--resume", step.makes]
        shutil.rmtree(folder)
    (WORK / "results" / step.package).mkdir(parents=True, exist_ok=True)
    return shlex.split(step.command.format(data="data", out=f"results/{step.package}"))


def collect(state: dict[str, Any], recorded: dict[str, Any], found: dict[str, Step]) -> list[str]:
    """Copy what was measured into the packages, fill their tables, and write down of what sources they are."""
    copied = []
    for path in sorted((WORK / "results").glob("*/*.json")):
        folder = ROOT / "shared" if path.parent.name == "shared" else ROOT / "packages" / path.parent.name
        shutil.copyfile(path, folder / "results" / path.name)
        copied.append(f"{path.parent.name}/{path.name}")
    if not copied:
        raise UserError("nothing was measured yet", WORK, "Run: make measure DATA=DIR")
    new = {s.name for s in found.values() if is_done(s, state, found) and not is_done(s, recorded, found)}
    merged = {**recorded, **{name: state[name] for name in new}}
    write_json(RECORD, {name: merged[name] for name in found if name in merged})
    for script in ("results_table.py", "scale.py", "site_pages.py"):
        subprocess.run([sys.executable, str(ROOT / "scripts" / script)], check=True, cwd=ROOT)
    return copied


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--data", default=os.environ.get("LATENTLAB_DATA"), help="folder of the real data")
    parser.add_argument("--only", action="append", default=[], help="a package or a step; may be given many times")
    parser.add_argument("--list", action="store_true", help="say what is done, and run nothing")
    parser.add_argument("--collect", action="store_true", help="copy the results into the packages, and run nothing")
    given = parser.parse_args()
    out = Output()
    found = {step.name: step for step in steps()}
    path = WORK / "state.json"
    state: dict[str, Any] = read_json(path) if path.is_file() else {}
    recorded: dict[str, Any] = read_json(RECORD) if RECORD.is_file() else {}
    if given.collect:
        copied = collect(state, recorded, found)
        return out.result({"copied": copied}, "\n".join(copied))
    known = {*found, *(step.package for step in found.values())}
    if unknown := set(given.only) - known:
        packages = ", ".join(sorted({step.package for step in found.values()}))
        raise UserError(f"{sorted(unknown)[0]!r} is no step", "--only", f"Use one that --list names, or {packages}")
    chosen = [s for s in found.values() if not given.only or {s.name, s.package} & set(given.only)]
    if given.list:
        rows = []
        for step in chosen:
            known_of = state if is_done(step, state, found) else recorded
            rows.append({"step": step.name, "done": is_done(step, known_of, found), **known_of.get(step.name, {})})
        lines = [f"{'done' if row['done'] else '    '}  {row['step']}  {row.get('seconds', '')}" for row in rows]
        return out.result({"steps": rows}, "\n".join(lines))
    use_data(given.data)
    failed = []
    for step in steps_to_run(chosen, recorded, state, found):
        state = read_json(path) if path.is_file() else {}  # another call may run beside this one
        if is_done(step, state, found):
            continue
        if missing := [name for name in step.after if not is_done(found[name], state, found)]:
            out.warn(f"{step.name} waits for {', '.join(missing)}")
            continue
        words = words_of(step, state)
        out.log(f"{step.name}: {shlex.join(words)}")
        note(path, step.name, {"source": source_of(step.package)})
        began = time.time()
        log = WORK / "logs" / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            program = str(Path(sys.executable).parent / words[0])
            done = subprocess.run([program, *words[1:]], cwd=WORK, stdout=file, stderr=file)
        if done.returncode:
            failed.append(f"{step.name} ({log.relative_to(ROOT)})")
            continue
        ended(step, began)
    if failed:
        raise RunFailed(f"failed: {', '.join(failed)}", "measure")
    out.result({"results": str(WORK / "results")}, f"{WORK / 'results'}: copy them with --collect")


def use_data(folder: str | None) -> None:
    """Link the real data into runs/measure; refuse to measure what no commit names."""
    if not folder:
        raise UserError("give the folder of real data", "--data", "With make: DATA=DIR")
    if not Path(folder).is_dir():
        raise UserError("there is no such folder", folder, "Give the folder of real data: DATA=DIR")
    if git("status", "--porcelain", "--untracked-files=no"):
        raise UserError("files differ from the commit", ROOT, "Commit first, or measure in a clean clone")
    link = WORK / "data"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path(folder).resolve())


def ended(step: Step, began: float) -> None:
    """Note that a step has its result."""
    facts = {"commit": git("rev-parse", "--short=12", "HEAD"), "seconds": round(time.time() - began)}
    note(WORK / "state.json", step.name, {"source": source_of(step.package), "ended": time.time(), **facts})


def note(path: Path, name: str, facts: dict[str, Any]) -> None:
    """Write down what happened to one step; other calls keep theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**(read_json(path) if path.is_file() else {}), name: facts})


if __name__ == "__main__":
    sys.exit(guarded(main, "-v" in sys.argv[1:]))
