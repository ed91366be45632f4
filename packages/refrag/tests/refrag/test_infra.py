"""What is built and deployed: a linter reads the Dockerfile, terraform its files where it is at hand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from refrag_runs import HOME

DOCKERFILE = HOME / "infra/docker/Dockerfile"
TERRAFORM = HOME / "infra/terraform"


def test_the_dockerfile_has_two_images_and_no_secrets():
    text = DOCKERFILE.read_text()
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    assert stages == ["wheels", "cpu", "cuda"]
    for stage in text.split("\nFROM ")[2:]:
        assert re.search(r"^USER \d+$", stage, re.MULTILINE), "the image would run as root"
    assert "latest" not in text and not re.search(r"token|secret|password", text, re.IGNORECASE)
    version = re.search(r'^version = "(.+)"$', (HOME / "pyproject.toml").read_text(), re.MULTILINE)
    assert text.count(f"[aws,launch,lora]=={version[1]}") == 2
    kept = [line[1:] for line in Path(f"{DOCKERFILE}.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((HOME.parents[1] / name).exists() for name in kept) and "runs" not in " ".join(kept)


def test_the_dockerfile_passes_a_linter():
    beside = Path(sys.executable).with_name("hadolint")
    linter = str(beside) if beside.exists() else shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_several_nodes_run_on_demand_and_roles_are_narrow():
    text = {path.stem: path.read_text() for path in TERRAFORM.glob("*.tf")}
    assert re.search(r'multinode = \{ kind = "EC2"', text["batch"])
    assert all(item in text["batch"] for item in ('type = "container"', 'type = "multinode"', "valueFrom ="))
    own = re.findall(r"actions\s+=\s+\[(.+?)\].*\n\s+resources = (.+)", text["iam"])
    assert len(own) >= 6 and [actions for actions, on in own if on == '["*"]'] == ['"ecr:GetAuthorizationToken"']
    assert not re.search(r'"\w+:\*"', text["iam"])
    assert "secret_string" not in " ".join(text.values())


def test_terraform_accepts_the_files(tmp_path):
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    done = subprocess.run(["terraform", "fmt", "-check", "-diff"], cwd=TERRAFORM, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    plugins = os.environ.get("REFRAG_TERRAFORM_PLUGINS")
    if plugins is None:
        pytest.skip("fmt passed; REFRAG_TERRAFORM_PLUGINS names no folder with the AWS provider to validate with")
    shutil.copytree(TERRAFORM, tmp_path / "tf")
    for command in (["init", "-backend=false", f"-plugin-dir={plugins}"], ["validate"]):
        done = subprocess.run(["terraform", *command], cwd=tmp_path / "tf", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
