"""The README is run: its bash blocks and Python in one folder, from top to bottom, as a reader would.

Blocks marked ``sh`` need real data or an open port: their commands are checked against ``--help``.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from seq2seq_keras.sample import generate

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.M | re.S)


def lines_of(language: str) -> list[str]:
    """The commands of all blocks of one language."""
    text = "".join(body for kind, body in BLOCKS if kind == language)
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_and_program_runs(tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    (tmp_path / "article.txt").write_text(generate(1, seed=11)[0].text)
    rows = [f'{{"text": "{e.text}"}}' for e in generate(3, seed=12)]
    (tmp_path / "articles.jsonl").write_text("\n".join(rows))
    ran = 0
    for kind, body in BLOCKS:
        if kind == "bash" and "pip install" not in body:
            # The first command with less to learn; in full it takes minutes of both cores.
            body = body.replace("seq2seq-keras train  ", "seq2seq-keras train --limit 2000 --set train.epochs=3 ", 1)
            call = ["bash", "-euo", "pipefail", "-c", body]
        elif kind == "python":
            call = [sys.executable, "-c", body]
        else:
            continue
        done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0 and done.stdout, f"{body}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 3


def test_every_verb_and_flag_exists():
    from typer.main import get_command

    from seq2seq_keras.cli import app

    commands = get_command(app).commands
    for line in [line for line in lines_of("sh") + lines_of("bash") if "seq2seq-keras" in line]:
        found = shlex.split(line.split("|")[-1].split(" #")[0])
        if found[0] != "seq2seq-keras":
            continue
        known = {option for parameter in commands[found[1]].params for option in parameter.opts}
        assert {word for word in found[2:] if word.startswith("-") and word != "-"} <= known, line


def test_every_verb_is_in_the_table_of_commands():
    from typer.main import get_command

    from seq2seq_keras.cli import app

    for verb in get_command(app).commands:
        assert f"`seq2seq-keras {verb}`" in README or f"(`{verb}`)" in README, verb


def test_every_public_name_of_the_readme_exists():
    import seq2seq_keras

    rows = "\n".join(re.findall(r"^\| `seq2seq_keras.*$", README, flags=re.M))
    for name in set(re.findall(r"`seq2seq_keras\.(\w+)`", rows)):
        assert name in seq2seq_keras.__all__, name
