"""`make measure`: its commands exist, it writes every table of every README, and it repeats what has changed only."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from test_docs import verbs
from workspace import ROOT


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    sys.modules[name] = found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


measure, bench, same = script("measure"), script("bench"), script("same")
STEPS = {step.name: step for step in measure.steps()}


def before(step: Any) -> set[str]:
    return {name for other in step.after for name in (other, *before(STEPS[other]))}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_a_command_that_exists_and_comes_after_what_it_reads(name: str) -> None:
    step = STEPS[name]
    program, verb, *words = shlex.split(step.command.format(data="DATA", out="OUT"))
    known = {option for parameter in verbs(program)[verb].params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known
    order = list(STEPS)
    assert all(order.index(other) < order.index(name) for other in step.after)
    assert step.package == "shared" or (ROOT / "packages" / step.package).is_dir()
    read = {word.split("/")[0] for word in words} & {other.makes for other in STEPS.values()} - {"", step.makes}
    assert read <= {STEPS[other].makes for other in before(step)}, "reads what it does not wait for"


@pytest.mark.parametrize("name", bench.BENCHES)
def test_a_benchmark_also_runs_on_what_is_built_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(bench, "OUT", tmp_path)
    monkeypatch.setattr(measure, "WORK", tmp_path)
    program, verb, *words = bench.words_of(STEPS[name], on_data=False)
    assert verb == "bench" and not any("data" in word for word in words) and "minilm" not in words
    options = {option for parameter in verbs(program)[verb].params for option in parameter.opts} | {"--json"}
    assert {word for word in words if word.startswith("-")} <= options
    assert str(tmp_path / "results" / STEPS[name].package) in " ".join(words), "nothing in the packages is overwritten"
    assert set(words) - {w for w in words if str(tmp_path) in w} <= set(bench.words_of(STEPS[name], on_data=True))


def test_every_package_has_a_benchmark() -> None:
    packages = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    assert {step.package for step in bench.BENCHES.values()} == {*packages, "shared"}


def test_a_step_is_done_until_its_sources_or_what_it_reads_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "source_of", lambda package: sources[package])
    monkeypatch.setattr(measure, "WORK", tmp_path)
    train = measure.Step("train", "nrms train --data {data} -o run", makes="run")
    score = measure.Step("score", "nrms evaluate -o {out}", ("train",))
    found = {"train": train, "score": score}
    sources = {"nrms": "a"}
    state = {"train": {"source": "a", "ended": 1.0}, "score": {"source": "a", "ended": 2.0}}
    assert measure.is_done(train, state, found) and measure.is_done(score, state, found)
    assert not measure.is_done(score, {**state, "train": {"source": "a", "ended": 3.0}}, found)
    assert not measure.is_done(score, {**state, "train": {"source": "a"}}, found)
    sources["nrms"] = "b"
    assert not measure.is_done(train, state, found)
    plain = ["nrms", "train", "--data", "data", "-o", "run"]
    assert measure.words_of(train, {}) == plain
    assert measure.words_of(score, {}) == ["nrms", "evaluate", "-o", "results/nrms"]  # no folder of this machine
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    resumed = measure.words_of(train, {"train": {"source": "b"}})
    assert resumed == ["nrms", "train", "--resume", "run"]
    assert measure.words_of(train, {"train": {"source": "a"}}) == plain
    assert not (tmp_path / "run").exists()


def test_what_was_measured_in_another_clone_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "source_of", lambda package: "a")
    train = measure.Step("train", "nrms train -o run", makes="run")
    score = measure.Step("score", "nrms evaluate -o {out}", ("train",))
    other = measure.Step("other", "nrms evaluate -o {out} --limit 3", ("train",))
    found = {"train": train, "score": score, "other": other}
    recorded = {"train": {"source": "a", "ended": 1.0}, "score": {"source": "a", "ended": 2.0}}

    def names(state: dict[str, Any], kept: dict[str, Any] = recorded) -> list[str]:
        return [step.name for step in measure.steps_to_run(list(found.values()), kept, state, found)]

    assert names({}, {}) == ["train", "score", "other"]
    assert names({}) == ["train", "other"], "the model is not in this clone, and only one still reads it"
    here = {"train": {"source": "a", "ended": 5.0}}
    assert names(here) == ["other"]
    here["other"] = {"source": "a", "ended": 6.0}
    assert names(here) == []
    (tmp_path / "results" / "nrms").mkdir(parents=True)
    (tmp_path / "results" / "nrms" / "folds.json").write_text("{}")
    (tmp_path / "packages" / "nrms" / "results").mkdir(parents=True)
    monkeypatch.setattr(measure, "WORK", tmp_path)
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "RECORD", tmp_path / "measured.json")
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **__: None)
    assert measure.collect(here, recorded, found) == ["nrms/folds.json"]
    kept = measure.read_json(tmp_path / "measured.json")
    assert kept == {**recorded, "other": here["other"]}, "what is recorded still agrees with itself"
    assert names({}, kept) == []


def test_what_is_carried_over_is_of_the_same_package_and_sources_and_no_benchmark() -> None:
    facts = {"source": "old", "ended": 1.0}
    record = {"nrms_folds": facts, "nrms_latency": facts, "rsr_lsa": facts, "refrag_nq": {"source": "older"}}
    found = same.carried(record, "nrms", "old", "new", "abc")
    assert found == {**record, "nrms_folds": {"source": "new", "ended": 1.0, "same_as": "abc"}}
    assert same.carried(record, "refrag", "old", "new", "abc") == record


def test_figures_are_compared_without_what_tells_of_the_run() -> None:
    held = {"rows": [{"name": "a", "auc": 0.5, "seconds": 3.1}], "date": "today"}
    assert same.figures(held) == {"rows": [{"name": "a", "auc": 0.5}]}


def test_every_table_of_a_readme_is_measured() -> None:
    """Commands name their table, or (`bench`, `folds`, `compare` …) write those of their kind."""
    told = " ".join(step.command for step in STEPS.values())
    kinds = {
        "rsr_net": "embedding differences steps convergence stopping extraction confidence ablation bench",
        "clara_absa": "answers probes sweep bench",
        "refrag": "align ttft memory alignment serve",
        "nrms": "folds bench",
        "shared": "cache",
    }
    for path in [*ROOT.glob("packages/*/results/*.json"), *ROOT.glob("shared/results/*.json")]:
        package = path.parents[1].name
        named = path.name in told or re.search(rf"--name {path.stem}\b", told)
        assert named or re.split("[_-]", path.stem)[0] in kinds[package].split(), path.name
