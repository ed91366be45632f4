"""The README is run: its bash blocks and Python in one folder, from top to bottom, as a reader would.

Blocks marked ``sh`` need a network, real data or an open port: their commands are checked against ``--help``.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rsr_net.sample import generate

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.M | re.S)


def lines_of(language: str) -> list[str]:
    """The commands of all blocks of one language, continued lines joined."""
    text = "".join(body for kind, body in BLOCKS if kind == language).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_and_program_runs(tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    examples = generate(4, seed=11)
    (tmp_path / "article.txt").write_text(examples[0].article)
    (tmp_path / "articles").mkdir()
    for example in examples[1:]:
        (tmp_path / "articles" / f"{example.id[:8]}.txt").write_text(example.article)
    ran = 0
    for kind, body in BLOCKS:
        if kind == "bash" and "pip install" not in body:
            call = ["bash", "-euo", "pipefail", "-c", body]
        elif kind == "python":
            call = [sys.executable, "-c", body]
        else:
            continue
        done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and done.stdout, f"{body}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 4


@pytest.mark.parametrize("line", [line for line in lines_of("sh") + lines_of("bash") if "rsr-net" in line])
def test_every_verb_and_flag_exists(line):
    command = line.split("|")[-1] if line.strip().startswith("cat") else line.split(" #")[0]
    words = shlex.split(command)
    if words[0] != "rsr-net":
        return
    said = subprocess.run(
        [sys.executable, "-m", "rsr_net.cli", words[1], "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout
    for word in words[2:]:
        if word.startswith("-") and word != "-":
            assert re.search(rf"(?<![\w-]){re.escape(word.split('=')[0])}(?![\w-])", said), f"{word} in: {line}"


def test_every_verb_is_in_the_table_of_commands():
    from typer.main import get_command

    from rsr_net.cli import app

    for verb in get_command(app).commands:
        assert f"`rsr-net {verb}`" in README or f"(`{verb}`)" in README, verb


def test_every_public_name_of_the_readme_exists():
    import rsr_net

    named = set(re.findall(r"`(?:rsr_net\.)?(\w+)`", "\n".join(re.findall(r"^\| `rsr_net.*$", README, flags=re.M))))
    for name in named - {"from_pretrained", "save_pretrained", "summarize", "data", "y", "z"}:
        assert hasattr(rsr_net, name) or hasattr(rsr_net.data, name), name
