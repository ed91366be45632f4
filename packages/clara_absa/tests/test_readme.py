"""The README is run: its bash blocks and Python in one folder, from top to bottom, as a reader would.

Blocks marked ``sh`` need a network, real data, a GPU or a longer time: their commands are checked against ``--help``.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.M | re.S)


def lines_of(language: str) -> list[str]:
    """The commands of all blocks of one language."""
    text = "".join(body for kind, body in BLOCKS if kind == language).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_and_program_runs(tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for kind, body in BLOCKS:
        if kind == "bash" and "pip install" not in body:
            # The first command with less to learn; in full it takes minutes of both cores.
            body = body.replace("clara-absa train  ", "clara-absa train --limit 400 --set train.epochs=3 ", 1)
            call = ["bash", "-euo", "pipefail", "-c", body]
        elif kind == "python":
            call = [sys.executable, "-c", body]
        else:
            continue
        done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0 and done.stdout, f"{body}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 3


@pytest.mark.parametrize("line", [line for line in lines_of("sh") + lines_of("bash") if "clara-absa" in line])
def test_every_verb_and_flag_exists(line, monkeypatch, capsys):
    from clara_absa.cli import app
    from latentlab_shared.cli import run

    words = shlex.split(line.split(" #")[0])
    if words[0] != "clara-absa":
        return
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        run(app, "clara-absa", [words[1], "--help"])
    said = capsys.readouterr().out
    for word in words[2:]:
        if word.startswith("-") and word != "-":
            assert re.search(rf"(?<![\w-]){re.escape(word.split('=')[0])}(?![\w-])", said), f"{word} in: {line}"


def test_every_verb_is_in_the_table_of_commands():
    from typer.main import get_command

    from clara_absa.cli import app

    for verb in get_command(app).commands:
        assert f"`clara-absa {verb}`" in README, verb


def test_every_public_name_of_the_readme_exists():
    import clara_absa

    named = re.findall(r"^\| `(?:clara_absa\.)?(\w+)`(?:, `(\w+)`)? \| ", README, flags=re.M)
    public = {name for pair in named for name in pair if name and name in clara_absa.__all__}
    assert public >= {"AspectSentiment", "Memory", "FastClaraModel", "ClaraConfig", "LocalLogger", "read_part"}
    for name in clara_absa.__all__:
        assert getattr(clara_absa, name) is not None
