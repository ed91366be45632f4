"""The seed's command lines: each composes; the short ones run."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from refrag_runs import HOME, composed, started

from latentlab_shared.errors import UserError
from refrag.framework.apps import run_app
from refrag.framework.launch import check_job
from refrag.framework.settings import dataset_path, make_settings

pytest.importorskip("hydra", reason="hydra-core is not installed (extra: launch)")

SEED = [
    "app=alignment",
    "app=alignment app.dataset=wikipedia app.training.epochs=3 app.training.steps_per_epoch=100",
    '+app.model_name="roberta-base" +app.dataset.path="data/wikipedia_sample.jsonl" app=alignment',
    "trainer.epochs=1 trainer.steps_per_epoch=5 trainer.batch_size=2",
    "app=train env=local",
    "app=train env=docker",
    "app=train env=local env.nproc_per_node=4",
    "app=train env=docker env.nproc_per_node=4",
    "app=train env=torchrun env.nproc_per_node=4",
    "app=train env=torchrun env.nproc_per_node=2",
    "app=train driver=torchrun driver.nproc_per_node=4",
    "app=hello_dist",
    "app=eval",
    "app=chatcli",
    "app=train model=gemma_1b train.steps=1000",
]


@pytest.mark.parametrize("line", SEED)
def test_every_line_of_the_seed_composes(line):
    config = composed(line)
    if config["app"]["name"] in ("alignment", "train"):
        with contextlib.suppress(UserError):  # data that is not here
            make_settings(config)


def documented():
    """The overrides of every line of the pages that runs ``run.py``, ``refrag run`` or ``main_alignment.py``."""
    pages = [*HOME.glob("docs/*.md"), HOME / "src/refrag/framework/apps/README_CHATCLI.md", HOME / "README.md"]
    for page in pages:
        for body in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S):
            for line in body.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:python (run|main_alignment)\.py|refrag run) +([^#]+)", line)
                if found:
                    yield found[1] == "main_alignment", found[2]


def test_every_documented_line_composes():
    lines = set(documented())
    assert len(lines) > 20
    for alone, line in sorted(lines):
        words = [re.sub(r",.*", "", word) for word in line.split() if word != "-m"]  # the first run of a sweep
        config = composed(" ".join(words), "alignment" if alone else "config")
        assert config["app"]["name"], line


def test_what_the_lines_ask_for(tmp_path):
    config = composed(SEED[1])
    config["app"]["dataset"] = None
    assert make_settings(config).loop.steps == 300
    settings = make_settings(composed(SEED[3]))
    assert (settings.loop.steps, settings.loop.batch_size, settings.stage) == (5, 2, "alignment")
    settings = make_settings(composed("app=train app.stage=reconstruction train.steps=1000 model=gemma_1b"))
    assert (settings.loop.steps, settings.decoder) == (1000, "google/gemma-3-1b-it")
    assert settings.lora and not make_settings(composed("app=train")).lora
    (tmp_path / "texts.txt").write_text("one\n")
    config = composed(f"app=alignment +app.model_name=roberta-base +app.dataset.path={tmp_path}/texts.txt")
    found = make_settings(config)
    assert (found.encoder, found.data) == ("roberta-base", f"{tmp_path}/texts.txt")


def test_main_alignment_has_its_own_configuration():
    assert composed(SEED[3], "alignment")["app"]["name"] == "alignment"


def test_every_choice_of_every_group_has_a_type():
    from omegaconf import OmegaConf

    for group in ("app", "env", "driver", "trainer", "model", "dataset", "engine"):
        for path in sorted((HOME / "conf" / group).glob("*.yaml")):
            line = f"{group}={path.stem}" + (" dataset.path=texts.txt" if path.stem == "file" else "")
            config = composed(line, plain=False)
            assert OmegaConf.get_type(config[group]).__module__ == "refrag.framework.schemas", line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("app=alignment app.nonsense=1", "nonsense"),
        ("app=alignment +app.nonsense=1", "unknown key app.nonsense"),
        ("app=train +app.training.epoch=1", "unknown key app.training.epoch"),
        ("+nonsense=1", "unknown key nonsense"),
        ("app=none", "none"),
        ("trainer.epoch=1", "epoch"),
        ("trainer.epochs=many", "merging override trainer.epochs"),
        ("env=torchrun env.nproc_per_node=two", "merging override env.nproc_per_node"),
    ],
)
def test_unknown_keys_and_other_types_are_errors(line, said):
    with pytest.raises(Exception, match=said):
        composed(line)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [("wikipediaa", "no dataset"), ({"path": "absent.jsonl"}, "no such file"), ("wikipedia", "refrag prepare")],
)
def test_data_that_is_not_there(dataset, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        dataset_path({"app": {"dataset": dataset}, "dataset": {"name": "sample"}})


# -- for real ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.epoch=1"], "Key 'epoch' not in 'Trainer'"),
        (["app=alignment", "+app.nonsense=1"], "unknown key app.nonsense"),
        (["app=train", "trainer.batch_size=-1"], "batch_size: must be at least 1, not -1"),
        (["app=train", "env=torchrun", "env.nproc_per_node=0"], "env.nproc_per_node: must be at least 1, not 0"),
        (["-m", "app=hello_dist", "env.nproc_per_node=1,0"], "env.nproc_per_node: must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(overrides, said, tmp_path):
    told = started("run.py", *overrides, cwd=tmp_path, code=2)
    assert told.startswith("error: ") and told.count("\n") == 1 and said in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("env=torchrun env.nproc_per_node=-3", "env.nproc_per_node: must be at least 1"),
        ("env=torchrun env.nnodes=0 env.standalone=false env.dry_run=true", "env.nnodes"),
        ("env=torchrun env.node_rank=-1", "env.node_rank: must be at least 0"),
        ("env=torchrun env.standalone=false env.nnodes=2 env.node_rank=2", "2 nodes have no rank 2"),
        ("env=torchrun env.standalone=false env.rdzv_backend=etcd", "no rendezvous"),
        ("env=torchrun env.master_port=0", "env.master_port"),
        ("env=local env.nproc_per_node=0 env.dry_run=true", "env.nproc_per_node"),
        ("env=docker env.nproc_per_node=0", "env.nproc_per_node"),
        ("env=awsbatch env.nnodes=-1", "env.nnodes"),
        ("driver=torchrun driver.nproc_per_node=0", "driver.nproc_per_node"),
        ("app=train train.steps=0", "steps: must be at least 1"),
        ("app=train app.training.batch_size=0 env=docker", "batch_size"),
        ("app=eval app.task=nope", "no task"),
        ("app=eval app.from_model=absent", "there is no model here"),
        ("app=train app.from_model=absent", "there is no model here"),
        ("app=train +app.dataset.path=absent.txt", "no such file"),
    ],
)
def test_what_cannot_run_is_found_before_it_is_started(line, said):
    with pytest.raises(UserError, match=said):
        check_job(composed(line))


def test_files_of_other_machines_are_not_looked_for():
    for line in ("env=docker", "env=awsbatch", "env=torchrun env.dry_run=true"):
        check_job(composed(f"app=train app.from_model=runs/absent +app.dataset.path=absent.txt {line}"))


def test_what_is_only_printed_leaves_nothing(tmp_path):
    out = started("run.py", "app=train", "env=torchrun", "env.dry_run=true", cwd=tmp_path)
    folder = re.search(r"hydra\.run\.dir='([^']+)'", out.replace("'\"'\"'", "'"))
    assert out.count("\n") == 1 and folder and folder[1].startswith(str(tmp_path / "runs/refrag/train"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_names_its_model(tmp_path, capsys):
    """On stdout, one line, as ``refrag train`` does; the log is elsewhere."""
    sizes = "trainer.batch_size=2 train.steps=2 seed=3"
    found = run_app(composed(f"app=alignment {sizes}"), tmp_path / "run")
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 'run' / 'model'}, loss ") and out.count("\n") == 1
    assert found["model"] in out and (tmp_path / "run" / "model" / "refrag.json").is_file()


def test_multirun_from_anywhere(tmp_path):
    """``refrag run -m``: one run after the other, each with its own folder; here they only say what they would do."""
    code = ("-c", "from refrag.cli import main; main()")
    sweep = ("run", "-m", "app=hello_dist", "env.dry_run=true", "seed=1,2")
    out = started(code, *sweep, cwd=tmp_path)
    lines = [line for line in out.splitlines() if "-m refrag.framework.run" in line]
    assert len(lines) == 2 and all(f"seed={n}" in line for n, line in enumerate(lines, start=1))
    assert [re.search(r"multirun/[^/]+/(\d)'", line)[1] for line in lines] == ["0", "1"]
    assert list(tmp_path.iterdir()) == []
    started(code, "run", "-m", "app=hello_dist", "seed=1,2", cwd=tmp_path)
    (sweep_folder,) = (tmp_path / "runs/refrag/hello_dist/multirun").iterdir()
    assert sorted(p.name for p in sweep_folder.iterdir() if p.is_dir()) == ["0", "1"]


@pytest.mark.slow
def test_main_alignment_trains(tmp_path, monkeypatch):
    """And a token in the environment is in no file that the run leaves."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary0123456789")
    started("main_alignment.py", "trainer.epochs=1", "trainer.steps_per_epoch=5", "trainer.batch_size=2", cwd=tmp_path)
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(rows) == 5 and all(row["anchors"] > 0 for row in rows)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"overrides.yaml", "environment.json", "config.json"} <= {path.name for path in files}
    assert [path for path in files if b"hf_canary" in path.read_bytes()] == []


@pytest.mark.slow
def test_alignment_in_two_processes_writes_once(tmp_path):
    sizes = ("trainer.steps_per_epoch=3", "trainer.batch_size=2")
    started("run.py", "app=alignment", "env=torchrun", "env.nproc_per_node=2", *sizes, cwd=tmp_path)
    for name in ("metrics.jsonl", "refrag.json", "run.log", "hydra.yaml"):
        assert len(list(tmp_path.rglob(name))) <= 1, name
    assert len(list(tmp_path.rglob("refrag.json"))) == 1
    assert len({path.parent for path in tmp_path.rglob(".hydra")}) == 1


@pytest.mark.slow
def test_two_launchers_meet_as_nodes_of_a_batch_job_do(tmp_path):
    """The shell line of a multi-node job, twice on this machine, with the variables that AWS Batch sets."""
    from latentlab_shared.serving import listen
    from refrag.framework.batch import node_command

    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = node_command(2, 1, ["app=hello_dist", "env=local", "hydra.output_subdir=null", "hydra/job_logging=none"])
    base = {**os.environ, "AWS_BATCH_JOB_NUM_NODES": "2", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    base["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), base["PATH"]])
    # A launcher script of this interpreter, so that `torchrun` in the line is the one under test.
    (tmp_path / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    base["PATH"] = os.pathsep.join([str(tmp_path), base["PATH"]])
    launchers = []
    for node in (0, 1):
        env = {**base, "AWS_BATCH_JOB_NODE_INDEX": str(node)}
        # Batch tells the main node's address to the others only.
        env |= {"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "127.0.0.1"} if node else {}
        launchers.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    told = [launcher.communicate(timeout=200)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], told
    assert "hello from rank 0 of 2" in told[0] and "hello from rank 1 of 2" in told[1]
