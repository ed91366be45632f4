"""Run folders: whole at any moment, one writer, resumable."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentlab_shared.errors import RunFailed, UserError
from latentlab_shared.files import read_json, write_json
from latentlab_shared.runs import RunFolder, model_card


def test_a_run_holds_what_the_plan_says(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {"epochs": 1}, seed=3, data={"sample": "abc"}) as run:
        run.log(1, loss=0.5)
        run.save_checkpoint("last", lambda folder: write_json(folder / "state.json", {"step": 1}))
        run.write_results({"r2": 0.1})
        run.write_card(model_card("Net", "It maps.", {"Uses": "Tests."}, run))
        assert run.plots.is_dir()
    names = {p.name for p in run.path.iterdir()} - {".lock"}
    assert names == {
        "config.json", "environment.json", "metrics.jsonl", "checkpoints", "results.json", "plots", "README.md"
    }  # fmt: skip
    env = read_json(run.path / "environment.json")
    assert env["seed"] == 3 and env["data"] == {"sample": "abc"} and env["packages"]["numpy"]
    assert read_json(run.path / "results.json")["environment"] == env
    card = (run.path / "README.md").read_text()
    assert card.startswith("# Net") and "## Uses" in card and '"epochs": 1' in card


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty"):
            RunFolder.create(tmp_path, {}, seed=0, overwrite=overwrite)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_replaces_an_earlier_run_only(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {"a": 1}, seed=0) as run:
        run.log(1, loss=1.0)
    with pytest.raises(UserError, match="--resume"):
        RunFolder.create(tmp_path / "r", {"a": 2}, seed=0)
    with RunFolder.create(tmp_path / "r", {"a": 2}, seed=0, overwrite=True) as run:
        assert run.config == {"a": 2} and run.metrics() == []


def test_a_kill_before_the_run_began_leaves_a_free_folder(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {"a": 1}, seed=0) as run:
        (run.path / "config.json").unlink()
    with RunFolder.create(tmp_path / "r", {"a": 2}, seed=5) as run:
        assert run.config == {"a": 2} and read_json(run.path / "environment.json")["seed"] == 5


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {"a": 1}, seed=0) as run:
        with pytest.raises(UserError, match="another process"):
            RunFolder.resume(run.path)
        assert RunFolder.read(run.path).config == {"a": 1}
    RunFolder.resume(run.path).close()


def test_resume_names_the_keys_that_differ(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "r", {"model": {"dim": 8}, "lr": 0.1}, seed=0).close()
    with pytest.raises(UserError, match=r"model\.dim"):
        RunFolder.resume(tmp_path / "r", {"model": {"dim": 9}, "lr": 0.1})
    RunFolder.resume(tmp_path / "r", {"model": {"dim": 8}, "lr": 0.1}).close()


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        RunFolder.read(tmp_path / "absent")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        RunFolder.read(tmp_path)


def test_a_torn_last_line_is_left_out_and_rewind_drops_later_steps(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {}, seed=0) as run:
        for step in (1, 2, 3):
            run.log(step, loss=1 / step)
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')
        assert [row["step"] for row in run.metrics()] == [1, 2, 3]
        run.rewind(2)
        run.log(3, loss=0.0)
        assert [row["step"] for row in run.metrics()] == [1, 2, 3] and run.metrics()[-1]["loss"] == 0.0


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {}, seed=0) as run:
        assert run.checkpoint("best") is None
        folder = run.save_checkpoint("best", lambda f: write_json(f / "s.json", [1, 2, 3]))
        (folder / "s.json").write_text("[1, 2")
        with pytest.raises(RunFailed, match=r"s\.json"):
            run.checkpoint("best")


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_json(folder / "s.json", {"step": 2})
        raise RuntimeError("no")

    with RunFolder.create(tmp_path / "r", {}, seed=0) as run:
        run.save_checkpoint("last", lambda f: write_json(f / "s.json", {"step": 1}))
        with pytest.raises(RuntimeError):
            run.save_checkpoint("last", fail)
        kept = run.checkpoint("last")
        assert kept is not None and read_json(kept / "s.json") == {"step": 1}
        assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["last"]


def test_kill_between_the_two_renames_is_recovered(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {}, seed=0) as run:
        final = run.save_checkpoint("last", lambda f: write_json(f / "s.json", {"step": 1}))
        os.replace(final, final.parent / ".last.old")
        kept = run.checkpoint("last")
        assert kept is not None and read_json(kept / "s.json") == {"step": 1}


def test_what_a_kill_left_does_not_stop_the_next_save(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", {}, seed=0) as run:
        home = run.save_checkpoint("last", lambda f: write_json(f / "s.json", {"step": 1})).parent
        for name in (".last.old", ".last.0123.tmp"):  # cut short in the removal of the old one, and in a write
            (home / name).mkdir()
            write_json(home / name / "s.json", {"step": 0})
        run.save_checkpoint("last", lambda f: write_json(f / "s.json", {"step": 2}))
        assert [p.name for p in home.iterdir()] == ["last"]
        kept = run.checkpoint("last")
        assert kept is not None and read_json(kept / "s.json") == {"step": 2}


def test_a_reader_between_the_two_renames_does_not_stop_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.create(tmp_path / "r", {}, seed=0) as run:
        run.save_checkpoint("last", lambda f: write_json(f / "s.json", {"step": 1}))
        real, reads = os.replace, []

        def replace(source: Path, target: Path) -> None:
            real(source, target)
            if Path(target).name == ".last.old" and not reads:
                reads.append(RunFolder.read(run.path).checkpoint("last"))

        monkeypatch.setattr(os, "replace", replace)
        run.save_checkpoint("last", lambda f: write_json(f / "s.json", {"step": 2}))
        kept = run.checkpoint("last")
        assert reads and kept is not None and read_json(kept / "s.json") == {"step": 2}


KILLED = """
import sys
from pathlib import Path
from latentlab_shared.files import write_json
from latentlab_shared.runs import RunFolder
path = Path(sys.argv[1])
run = RunFolder.resume(path)
step = 0
while True:
    step += 1
    run.save_checkpoint("last", lambda f: [write_json(f / f"{i}.json", {"step": step}) for i in range(3)])
    run.log(step, loss=1.0)
"""


def test_kill_9_always_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "r", {}, seed=0).close()
    chance = random.Random(0)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "r")]) as process:
            while not (tmp_path / "r" / "metrics.jsonl").exists():
                time.sleep(0.01)
            time.sleep(0.4 + chance.random() * 0.2)
            process.send_signal(signal.SIGKILL)
        run = RunFolder.read(tmp_path / "r")
        kept = run.checkpoint("last")
        assert kept is not None
        assert len({json.dumps(read_json(kept / f"{i}.json")) for i in range(3)}) == 1
        run.metrics()


def test_trackers_write_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    with RunFolder.create(tmp_path / "r", {}, seed=0, track=["tensorboard"]) as run:
        run.log(1, loss=0.5)
    assert list((run.path / "tensorboard").glob("events.*"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5)]
    with pytest.raises(UserError, match="unknown tracker"):
        RunFolder.create(tmp_path / "q", {}, seed=0, track=["mlflow"])


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with RunFolder.create(tmp_path / "r", {"a": 1}, seed=0, track=["wandb"]) as run:
        run.log(1, loss=0.5)
    assert list(run.path.glob("wandb/offline-run-*/*.wandb"))


def test_a_folder_that_cannot_be_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="a file stands where a folder is needed"):
            RunFolder.ensure_free(path)
    assert RunFolder.ensure_free(tmp_path / "not" / "yet" / "there") == []
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="unknown tracker 'paper'"):
        RunFolder.create(tmp_path / "run", {}, seed=0, track=["paper"])
    assert not (tmp_path / "run").exists()
