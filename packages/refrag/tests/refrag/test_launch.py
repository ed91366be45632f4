"""Launchers: the commands and requests they make, what is sent to AWS, and what is never told to anybody."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from refrag_runs import HOME, composed, started

from latentlab_shared.errors import RunFailed, UserError
from refrag.framework.batch import batch_request, job_definition, node_command, submit
from refrag.framework.launch import docker_command, elsewhere, inner_overrides, launch, torchrun_command
from refrag.framework.overlay import make_overlay, unpack, upload
from refrag.framework.results import keep
from refrag.framework.run import check_overrides, forget_marker, refuse_secrets
from refrag.model.hub import MARKER

pytest.importorskip("hydra", reason="hydra-core is not installed (extra: launch)")
CANARY = "hf_canary0123456789"


def test_the_same_run_in_one_place():
    given = ["app=train", "env=torchrun", "env.nproc_per_node=2", "+app.x=1", "driver=torchrun"]
    own = ["env=local", "driver=inline", "hydra.run.dir='a b'", "hydra.output_subdir=null", "hydra/job_logging=none"]
    assert inner_overrides(given, Path("a b/run")) == ["app=train", "+app.x=1", *own]


def test_commands_of_torchrun():
    one = torchrun_command({"nproc_per_node": 4}, ["app=hello_dist"])
    tail = ["-m", "refrag.framework.run", "app=hello_dist"]
    assert one == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4", *tail]
    sizes = composed("env=torchrun env.standalone=false env.nnodes=2 env.node_rank=1 env.master_addr=10.0.0.1")["env"]
    two = torchrun_command(sizes, [])
    assert two[3:11] == ["--nnodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1", "--master_port", "29500"]
    met = torchrun_command({**sizes, "rdzv_backend": "c10d"}, [])
    assert " ".join(met[3:11]) == "--nnodes 2 --rdzv_backend c10d --rdzv_endpoint 10.0.0.1:29500 --rdzv_id refrag"
    with pytest.raises(UserError, match="no rendezvous"):
        torchrun_command({**sizes, "rdzv_backend": "etcd"}, [])


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("env=torchrun env.nproc_per_node=4", "4"),
        ("driver=torchrun driver.nproc_per_node=3", "3"),
        ("env=local env.nproc_per_node=2", "2"),
    ],
)
def test_three_ways_to_several_processes(line, count, tmp_path, capsys):
    found = launch(composed(f"app=hello_dist {line} env.dry_run=true"), line.split(), tmp_path / "run")
    command = found["command"]
    assert command[2] == "torch.distributed.run" and command[command.index("--nproc_per_node") + 1] == count
    assert "torch.distributed.run" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_the_command_of_docker(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    env = composed("env=docker env.gpus=all env.nproc_per_node=2")["env"]
    inner = inner_overrides(["app=train"], elsewhere(tmp_path / "runs" / "refrag" / "train" / "now" / "run"))
    assert docker_command(env, inner) == [
        "docker", "run", "--rm", "--gpus", "all", "-e", "HF_TOKEN", "-e", "LATENTLAB_DATA",
        "-v", f"{tmp_path}/runs:/app/runs", "-w", "/app", "refrag:cpu",
        "torchrun", "--standalone", "--nproc_per_node", "2", "-m", "refrag.framework.run",
        "app=train", "env=local", "driver=inline", "hydra.run.dir='runs/refrag/train/now'",
        "hydra.output_subdir=null", "hydra/job_logging=none",
    ]  # fmt: skip
    assert elsewhere(Path("/far/away/train/now/run")) == Path("runs/train/now/run")


# -- AWS Batch ---------------------------------------------------------------------------------------------------------


def test_requests_of_batch():
    env = composed("env=awsbatch")["env"]
    assert batch_request(env, ["app=train"]) == {
        "jobName": "refrag",
        "jobQueue": "refrag-gpu-job-queue",
        "jobDefinition": "refrag-gpu",
        "containerOverrides": {
            "command": [
                "torchrun", "--standalone", "--nproc_per_node", "1", "-m", "refrag.framework.run", "app=train",
            ]
        },
    }  # fmt: skip
    many = batch_request({**env, "nnodes": 4, "nproc_per_node": 8}, ["app=train"], "s3://b/k.tar.gz")
    assert many["nodeOverrides"] == {
        "numNodes": 4,
        "nodePropertyOverrides": [
            {
                "targetNodes": "0:",
                "containerOverrides": {
                    "command": [
                        "bash",
                        "-c",
                        'python -m refrag.framework.overlay "$REFRAG_OVERLAY" /tmp/overlay && '
                        "export PYTHONPATH=/tmp/overlay/packages/refrag/src:/tmp/overlay/shared/src && "
                        "exec torchrun --nnodes $AWS_BATCH_JOB_NUM_NODES --node_rank $AWS_BATCH_JOB_NODE_INDEX "
                        "--master_addr ${AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS:-$(hostname -i)} "
                        "--master_port ${MASTER_PORT:-29500} --nproc_per_node 8 "
                        '-m refrag.framework.run "$@"',
                        "refrag",
                        "app=train",
                    ],
                    "environment": [{"name": "REFRAG_OVERLAY", "value": "s3://b/k.tar.gz"}],
                },
            }
        ],
    }


def test_the_submitter_prints_both_requests():
    line = "app=train model=gemma_1b train.steps=1000"
    given = ("--image", "refrag:cuda", "--queue", "gpu", "--overrides", line, "--gpus", "1", "--dry-run")
    found = json.loads(started("infra/scripts/batch_submitter.py", *given, cwd=HOME))
    assert found["submit"]["containerOverrides"]["command"][-5:] == [*line.split(), "env=local", "driver=inline"]
    container = found["register"]["containerProperties"]
    assert container["image"] == "refrag:cuda" and {"type": "GPU", "value": "1"} in container["resourceRequirements"]
    composed(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [("app=nope", "nope"), ("app=train trainer.epoch=1", "epoch"), ("app=train trainer.batch_size=0", "batch_size")],
)
def test_the_submitter_sends_no_run_that_cannot_be(line, said):
    with pytest.raises(UserError, match=said):
        check_overrides([*line.split(), "env=local", "driver=inline"])
    given = ("--image", "refrag:cpu", "--queue", "cpu", "--overrides", "app=nope", "--dry-run")
    if line == "app=nope":
        told = started("infra/scripts/batch_submitter.py", *given, cwd=HOME, code=2)
        assert told.startswith("error: configuration: ") and told.count("\n") == 1 and "nope" in told


@pytest.fixture
def aws(monkeypatch):
    """A stubbed AWS with a queue and a bucket."""
    moto = pytest.importorskip("moto", reason="moto is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed (extra: aws)")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws(config={"batch": {"use_docker": False}}):
        iam, batch = boto3.client("iam"), boto3.client("batch")
        trust = {"Version": "2012-10-17", "Statement": []}
        role = iam.create_role(RoleName="batch", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
        place = batch.create_compute_environment(
            computeEnvironmentName="here", type="UNMANAGED", state="ENABLED", serviceRole=role
        )["computeEnvironmentArn"]
        order = [{"order": 1, "computeEnvironment": place}]
        batch.create_job_queue(jobQueueName="queue", state="ENABLED", priority=1, computeEnvironmentOrder=order)
        boto3.client("s3").create_bucket(Bucket="code")
        yield boto3


def test_a_job_is_sent(aws, capsys):
    overlay = make_overlay("code")
    env = {"job_name": "one", "job_queue": "queue", "job_definition": "one", "nnodes": 1, "nproc_per_node": 1}
    definition = job_definition("one", "refrag:cpu", 1, 1, 1024, 0, "arn:aws:secretsmanager:us-east-1:1:secret:hf")
    found = submit(batch_request(env, ["app=hello_dist"], overlay.address), overlay, definition)
    assert json.loads(capsys.readouterr().out) == found
    (job,) = aws.client("batch").describe_jobs(jobs=[found["jobId"]])["jobs"]
    assert job["jobName"] == "one" and job["container"]["command"][-1] == "app=hello_dist"
    held = aws.client("s3").get_object(Bucket="code", Key=overlay.key)["Body"].read()
    assert held == overlay.content and upload(overlay, aws.client("s3")) is False
    with pytest.raises(RunFailed, match="AWS"):
        submit(batch_request(env | {"job_queue": "absent"}, []))


def test_requests_for_several_nodes_are_what_the_service_takes(aws):
    """The stub of AWS knows no such jobs; its own description of the service checks the requests."""
    from botocore.stub import Stubber

    batch = aws.client("batch")
    definition = job_definition("many", "refrag:cuda", 4, 8, 4096, 1, None)
    env = {"job_name": "many", "job_queue": "queue", "job_definition": "many", "nnodes": 4, "nproc_per_node": 1}
    request = batch_request(env, ["app=hello_dist"], "s3://b/k")
    with Stubber(batch) as stub:
        named = {"jobDefinitionName": "many", "jobDefinitionArn": "arn", "revision": 1}
        stub.add_response("register_job_definition", named, definition)
        stub.add_response("submit_job", {"jobName": "many", "jobId": "1"}, request)
        batch.register_job_definition(**definition)
        assert batch.submit_job(**request)["jobId"] == "1"
    assert definition["type"] == "multinode" and definition["nodeProperties"]["numNodes"] == 4


def test_what_a_run_left_is_kept(aws, tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "results.json").write_text("{}")
    s3 = aws.client("s3")
    assert (
        keep(tmp_path / "runs", "s3://code/refrag/runs/x", s3) == 1 and keep(tmp_path / "none", "s3://code/x", s3) == 0
    )
    assert s3.get_object(Bucket="code", Key="refrag/runs/x/one/results.json")["Body"].read() == b"{}"
    with pytest.raises(UserError, match="address"):
        keep(tmp_path, "code/x", s3)


def test_a_node_keeps_results_and_tells_how_the_run_ended(tmp_path):
    """The shell line of a job for real, with a torchrun that fails and a python that notes what it is asked."""
    (tmp_path / "torchrun").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@" >> asked\n')
    for name in ("torchrun", "python"):
        (tmp_path / name).chmod(0o755)
    command = node_command(1, 2, ["app=train"], overlay=True, results=True)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REFRAG_OVERLAY": "s3://b/k", "REFRAG_RESULTS": "s3://b/r"}
    assert subprocess.run(command, cwd=tmp_path, env=env).returncode == 3
    assert (tmp_path / "asked").read_text().splitlines() == [
        "-m refrag.framework.overlay s3://b/k /tmp/overlay",
        "-m refrag.framework.results runs s3://b/r",
    ]


# -- the overlay -------------------------------------------------------------------------------------------------------


def repository(folder):
    for command in (["init", "-q"], ["config", "user.email", "a@b"], ["config", "user.name", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "shared").mkdir()
    (folder / "shared" / "a.py").write_text("1\n")
    (folder / "shared" / "secret.env").write_text(CANARY)
    subprocess.run(["git", "add", "shared/a.py"], cwd=folder, check=True)


def test_an_overlay_is_what_git_tracks_and_named_by_it(tmp_path):
    (tmp_path / "one").mkdir()
    repository(tmp_path / "one")
    first = make_overlay("b", tmp_path / "one")
    os.utime(tmp_path / "one" / "shared" / "a.py", (1, 1))
    assert make_overlay("b", tmp_path / "one") == first
    unpack(first.content, first.key, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["a.py"]
    (tmp_path / "one" / "shared" / "a.py").write_text("2\n")
    assert make_overlay("b", tmp_path / "one").key != first.key
    with pytest.raises(RunFailed, match="damaged"):
        unpack(first.content + b"x", first.key, tmp_path / "out")
    with pytest.raises(UserError, match="git"):
        make_overlay("b", tmp_path / "out")


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_a_secret_in_the_command_line_is_refused_before_anything_is_written(tmp_path):
    told = started("run.py", "app=hello_dist", f"+HF_TOKEN={CANARY}", cwd=tmp_path, code=2)
    assert "HF_TOKEN: a secret is no part" in told and CANARY not in told and list(tmp_path.iterdir()) == []
    refuse_secrets(["app.max_tokens=8", "train.steps=3"])  # these are none


def test_the_stand_in_is_forgotten(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", MARKER)
    forget_marker()
    assert "HF_TOKEN" not in os.environ
    monkeypatch.setenv("HF_TOKEN", CANARY)
    forget_marker()
    assert os.environ["HF_TOKEN"] == CANARY


def test_the_token_goes_to_the_hub_and_the_stand_in_does_not(tmp_path):
    """A hub of our own writes down what it is sent; in another process, because the hub's client reads once."""
    seen: list[str | None] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            seen.append(self.headers.get("Authorization"))
            self.send_error(404)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    program = (
        "import os\nfrom latentlab_shared.errors import NeedsNetwork\n"
        "from refrag.model.folder import load_decoder\nfrom refrag.model.tokenizer.loading import load_tokenizer\n"
        f"for token in ({CANARY!r}, {MARKER!r}):\n"
        "    os.environ['HF_TOKEN'] = token\n"
        "    for load in (load_tokenizer, load_decoder):\n"
        "        try:\n            load('lab/no-such-model')\n"
        "        except NeedsNetwork as error:\n            print(error)\n"
        "import logging\n"  # a hub that is away is asked again and again, and each time that is logged
        "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s')\n"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        env.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
        server.shutdown()
    assert done.stdout.count("cannot be fetched") == 4, done.stdout + done.stderr
    assert done.stderr == ""
    assert set(seen) == {f"Bearer {CANARY}", None}
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_token_is_found_nowhere(tmp_path):
    """Faults and dry runs with a token in the environment: it is in no output, command line, request or file."""
    env = {**os.environ, "HF_TOKEN": CANARY, "HF_HUB_OFFLINE": "1"}
    told = ""
    for line, code in (
        ("app=alignment +app.model_name=no/such-model", 2),  # an error of the hub's client
        ("app=train env=docker env.dry_run=true", 0),
        ("app=train env=awsbatch env.nnodes=2 env.dry_run=true", 0),
    ):
        done = subprocess.run(
            [sys.executable, HOME / "run.py", *line.split()], capture_output=True, text=True, cwd=tmp_path, env=env
        )
        assert done.returncode == code, done.stderr[-2000:]
        told += done.stdout + done.stderr
    assert "refrag" in told and CANARY not in told
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "overrides.yaml" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
