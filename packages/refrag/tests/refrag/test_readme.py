"""What the README says exists: its verbs, flags and names."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import refrag
from refrag.cli import app

HOME = Path(__file__).parents[2]
README = (HOME / "README.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands
LINES = [
    line.split(" #")[0]
    for body in re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    for line in body.replace("\\\n", " ").splitlines()
    if line.startswith("refrag ")
]


@pytest.mark.parametrize("line", LINES)
def test_every_verb_and_flag_exists(line):
    _, verb, *words = shlex.split(line)
    known = {option for parameter in COMMANDS[verb].params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known


def test_every_verb_is_in_the_table_of_commands():
    assert len(LINES) > 5 and all(f"| `refrag {verb}` |" in README for verb in COMMANDS)


def test_every_public_name_is_there():
    named = set(re.findall(r"`refrag\.(\w+)`", README))
    assert len(named) > 5 and named <= set(refrag.__all__)
    assert all(getattr(refrag, name) is not None for name in refrag.__all__)
    with pytest.raises(AttributeError):
        _ = refrag.nonsense


def test_linked_pages_are_there():
    pages = [HOME / "README.md", *HOME.glob("docs/*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), (page.name, target)
