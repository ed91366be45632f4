"""The seed's command lines: each composes; the short ones run; launchers make the commands they should."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentlab_shared.errors import UserError
from refrag.framework.launch import batch_request, docker_command, inner_overrides, launch, torchrun_command
from refrag.framework.settings import dataset_path, make_settings

hydra = pytest.importorskip("hydra", reason="hydra-core is not installed (extra: launch)")
HOME = Path(__file__).parents[2]

SEED = [
    "app=alignment",
    "app=alignment app.dataset=wikipedia app.training.epochs=3 app.training.steps_per_epoch=100",
    '+app.model_name="roberta-base" +app.dataset.path="data/wikipedia_sample.jsonl" app=alignment',
    "trainer.epochs=1 trainer.steps_per_epoch=5 trainer.batch_size=2",
    "app=train env=local env.nproc_per_node=4",
    "app=train env=docker env.nproc_per_node=4",
    "app=train env=torchrun env.nproc_per_node=4",
    "app=train driver=torchrun driver.nproc_per_node=4",
    "app=hello_dist",
    "app=eval",
    "app=chatcli",
    "app=train model=gemma_1b train.steps=1000",
]


def composed(line, name="config"):
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("refrag.conf", version_base="1.3"):
        config = compose(name, [word.replace('"', "") for word in line.split()])
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("line", SEED)
def test_every_line_of_the_seed_composes(line):
    config = composed(line)
    if config["app"]["name"] in ("alignment", "train"):
        with contextlib.suppress(UserError):  # data that is not here
            make_settings(config)


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


@pytest.mark.parametrize(
    ("line", "said"),
    [("app=alignment app.nonsense=1", "nonsense"), ("app=none", "none"), ("trainer.epoch=1", "epoch")],
)
def test_unknown_keys_are_errors(line, said):
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


# -- launchers ---------------------------------------------------------------------------------------------------------


def test_the_same_run_in_one_place():
    given = ["app=train", "env=torchrun", "env.nproc_per_node=2", "+app.x=1", "driver=torchrun"]
    own = ["env=local", "driver=inline", "hydra.run.dir='a b'", "hydra.output_subdir=null", "hydra/job_logging=none"]
    assert inner_overrides(given, Path("a b/run")) == ["app=train", "+app.x=1", *own]


def test_commands_of_torchrun():
    one = torchrun_command({"nproc_per_node": 4}, ["app=hello_dist"])
    tail = ["-m", "refrag.framework.run", "app=hello_dist"]
    assert one == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4", *tail]
    sizes = {"nproc_per_node": 1, "standalone": False, "nnodes": 2, "node_rank": 1}
    two = torchrun_command(sizes | {"master_addr": "10.0.0.1", "master_port": 29500}, [])
    assert two[3:11] == ["--nnodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1", "--master_port", "29500"]


def test_secrets_go_by_name_only(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    config = composed("app=train env=docker")
    command = docker_command(config["env"], ["app=train"])
    assert command[:3] == ["docker", "run", "--rm"] and command[3:5] == ["-e", "HF_TOKEN"]
    assert "hf_canary" not in json.dumps([command, config, batch_request(composed("env=awsbatch")["env"], [])])


def test_requests_of_batch():
    env = composed("env=awsbatch")["env"]
    one = batch_request(env, ["app=train"])
    assert one == {
        "jobName": "refrag",
        "jobQueue": "refrag-gpu-job-queue",
        "jobDefinition": "refrag-gpu",
        "containerOverrides": {
            "command": [
                "torchrun", "--nproc_per_node", "1", "--standalone", "-m", "refrag.framework.run", "app=train",
            ]
        },
    }  # fmt: skip
    many = batch_request({**env, "nnodes": 4, "nproc_per_node": 8}, ["app=train"])["nodeOverrides"]
    (nodes,) = many["nodePropertyOverrides"]
    command = nodes["containerOverrides"]["command"]
    assert many["numNodes"] == 4 and nodes["targetNodes"] == "0:" and command[-1] == "app=train"
    assert "${AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS:-$(hostname -i)}" in command[2]


def test_the_submitter_prints_both_requests():
    line = "app=train model=gemma_1b train.steps=1000"
    given = ("--image", "refrag:cuda", "--queue", "gpu", "--overrides", line, "--gpus", "1", "--dry-run")
    done = subprocess.run(
        [sys.executable, HOME / "infra/scripts/batch_submitter.py", *given], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["submit"]["containerOverrides"]["command"][-5:] == [*line.split(), "env=local", "driver=inline"]
    container = found["register"]["containerProperties"]
    assert container["image"] == "refrag:cuda" and {"type": "GPU", "value": "1"} in container["resourceRequirements"]
    composed(line)


def test_a_dry_run_runs_nothing(capsys, tmp_path):
    config = composed("app=hello_dist env=torchrun env.dry_run=true")
    launch(config, ["app=hello_dist", "env=torchrun"], tmp_path / "run")
    assert "torch.distributed.run" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


# -- for real ----------------------------------------------------------------------------------------------------------


def started(script, *overrides, cwd):
    done = subprocess.run([sys.executable, HOME / script, *overrides], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_hello_from_two_processes(tmp_path):
    out = started("run.py", "app=hello_dist", "env=torchrun", "env.nproc_per_node=2", cwd=tmp_path)
    assert "hello from rank 0 of 2" in out and "hello from rank 1 of 2" in out


@pytest.mark.slow
def test_main_alignment_trains(tmp_path):
    started("main_alignment.py", "trainer.epochs=1", "trainer.steps_per_epoch=5", "trainer.batch_size=2", cwd=tmp_path)
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(rows) == 5 and all(row["anchors"] > 0 for row in rows)


@pytest.mark.slow
def test_alignment_in_two_processes_writes_once(tmp_path):
    sizes = ("trainer.steps_per_epoch=3", "trainer.batch_size=2")
    started("run.py", "app=alignment", "env=torchrun", "env.nproc_per_node=2", *sizes, cwd=tmp_path)
    assert len(list(tmp_path.rglob("metrics.jsonl"))) == 1 and len(list(tmp_path.rglob("refrag.json"))) == 1
