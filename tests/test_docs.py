"""The site: its commands exist with their flags, its links lead somewhere, its generated parts are up to date."""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from workspace import ROOT, members

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TARGETS = {name: target for member in members() for name, target in member.scripts.items()}


@cache
def verbs(name: str) -> dict[str, Any]:
    app = importlib.import_module(TARGETS[name].split(":")[0]).app
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def lines() -> list[tuple[str, str]]:
    """Every command line of every page: continued lines joined, comments and environment variables left out."""
    found = []
    for page in PAGES:
        for body in re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in body.replace("\\\n", " ").splitlines():
                words = line.split(" #")[0].strip()
                if words and not words.startswith("#"):
                    found.append((page.relative_to(ROOT).as_posix(), words))
    return found


@pytest.mark.parametrize(("page", "line"), lines())
def test_every_command_of_a_page_exists(page: str, line: str) -> None:
    words = [w for w in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", w)]
    words = words[2:] if words[:2] == ["uv", "run"] else words
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
        words = [{module.split(":")[0]: name for name, module in TARGETS.items()}.get(words[0], words[0]), *words[1:]]
    if words[0] == "make":
        targets = re.findall(r"^([a-z][\w%-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert all("=" in word or word in targets for word in words[1:]), line
    elif words[0] in TARGETS and words[1:]:
        if words[1] == "--help":
            return
        known = {option for parameter in verbs(words[0])[words[1]].params for option in parameter.opts}
        given = {word.split("=")[0] for word in words[2:] if word.startswith("-") and word != "-"}
        assert given <= known | {"--help"}, (page, given - known)
    elif words[0].count(".") and not words[0].startswith("."):
        assert importlib.util.find_spec(words[0]) is not None, line
    else:
        assert words[0] in ("pip", "pytest", "uv", "cat", "curl", "export", "UV_TORCH_BACKEND", "git", *TARGETS), line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists() or "commands.md" in target, (page.name, target)


def test_the_site_names_every_page_and_nothing_from_elsewhere() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", text)) - {"reference/commands.md"}
    there = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")} - {"reference/commands.md"}
    assert named == there
    assert "font: false" in text and "http" not in text.replace("http.server", "")


@pytest.mark.parametrize("script", ["scale.py", "site_pages.py"])
def test_written_pages_agree_with_what_they_are_written_from(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_names_modules_that_exist() -> None:
    sources = [member.folder / "src" for member in members()]
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for module in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M):
            path = Path(*module.split("."))
            assert any((s / path).with_suffix(".py").is_file() or (s / path).is_dir() for s in sources), module


def test_the_picture_is_of_the_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    for contract in contracts:
        if contract["type"] == "layers":
            assert f">{contract['containers'][0]}<" in picture
            for row in contract["layers"]:
                assert row.replace(" | ", " · ") in picture
