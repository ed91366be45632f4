"""The README's commands exist with their flags, and its Python runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from factory import make_news

from nrms.cli import app
from nrms.inference import Recommender
from nrms.model.folder import LoadedModel

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
COMMANDS = [
    line
    for _, block in re.findall(r"```(bash|sh)\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("nrms ")
]
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_flags_exist(command: str) -> None:
    _, verb, *rest = shlex.split(command, comments=True)
    assert verb in VERBS
    flags = {option for parameter in VERBS[verb].params for option in parameter.opts}
    assert {word.split("=")[0] for word in rest if word.startswith("-")} <= flags


def test_every_verb_is_in_the_table() -> None:
    assert {verb for verb in VERBS if f"`nrms {verb}`" in TEXT or f"(`{verb}`)" in TEXT} == set(VERBS)


def test_every_route_is_in_the_table(tmp_path: Path) -> None:
    from nrms.server.app import create_app
    from nrms.server.settings import Settings

    paths = create_app(Settings(f"sqlite:///{tmp_path / 'x.db'}")).openapi()["paths"]
    for path, methods in paths.items():
        for method in methods:
            named = f"`{method.upper()} {path}`".replace("{user}", "{id}")
            assert named in TEXT or f"`{path}`" in TEXT, named


def test_python_blocks_run(tmp_path: Path, model: LoadedModel) -> None:
    made = Recommender(model)
    made.add(make_news(60))
    made.save_pretrained(tmp_path / "runs" / "nrms" / "sample")
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.startswith("N"), done.stderr


def test_no_figure_stands_outside_a_generated_table() -> None:
    measured = TEXT.split("## What was measured", 1)[1].split("\n## ", 1)[0]
    prose = re.sub(r"<!-- table:.*?<!-- end table -->", "", measured, flags=re.DOTALL)
    assert not re.search(r"\d+(\.\d+)? ?(ms|titles|samples|requests)/?", prose)
