"""Every command of every package speaks the same grammar: verbs, flags, exit codes, one-line errors, configurations."""

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from calls import Session, call
from workspace import ROOT, Member, members

from latentlab_shared.cli import VERBS

COMMANDS = [(m, name, target) for m in members() for name, target in m.scripts.items()]
SYSTEMS = [(m, name, target) for m, name, target in COMMANDS if m.folder.name != "shared"]
IDS = {"COMMANDS": [c[1] for c in COMMANDS], "SYSTEMS": [c[1] for c in SYSTEMS]}

# What a verb of the house takes in every system, beside --json, --quiet and --verbose.
FLAGS = {
    "prepare": {"--source", "--output-dir", "--limit"},
    "train": {"--data", "--config", "--set", "--output-dir", "--overwrite", "--resume", "--seed"},
    "evaluate": {"--model", "--data", "--output-dir", "--limit"},
    "predict": {"--model"},
    "serve": {"--model", "--host", "--port"},
    "export": {"--model", "--output-dir"},
    "bench": set(),
}
# One name means one thing: its type, whether it may be given many times, its short form.
MEANINGS = {
    "--config": ("Path", False, ("--config",)),
    "--data": ("str", False, ("--data",)),
    "--demo": ("bool", False, ("--demo",)),
    "--device": ("DeviceName", False, ("--device",)),
    "--host": ("str", False, ("--host",)),
    "--json": ("bool", False, ("--json",)),
    "--limit": ("int", False, ("--limit",)),
    "--model": ("Path", False, ("--model", "-m")),
    "--output-dir": ("Path", False, ("--output-dir", "-o")),
    "--overwrite": ("bool", False, ("--overwrite",)),
    "--port": ("int", False, ("--port",)),
    "--quiet": ("bool", False, ("--quiet", "-q")),
    "--resume": ("Path", False, ("--resume",)),
    "--seed": ("int", False, ("--seed",)),
    "--set": ("list[str]", True, ("--set",)),
    "--skip-bad": ("bool", False, ("--skip-bad",)),
    "--verbose": ("bool", False, ("--verbose", "-v")),
}
# `rsr-net folds` measures real articles and takes no "sample"; a stage of `refrag train` may start without a model.
OTHERWISE = {("rsr-net", "folds", "--data"), ("refrag", "train", "--model")}


@cache
def commands(target: str) -> dict[str, Any]:
    """The verbs of a command; importing it loads no framework (a test below says so)."""
    app = importlib.import_module(target.split(":")[0]).app
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def options(target: str, verb: str) -> dict[str, Any]:
    """The long flags of a verb."""
    found = (p for p in commands(target)[verb].params if p.param_type_name == "option")
    return {max(p.opts, key=len): p for p in found}


@cache
def asked(name: str, target: str, folder: Path) -> Session:
    verbs = list(commands(target))
    helps = [["--help"], ["--version"], *([verb, "--help"] for verb in verbs)]
    mistakes = [[], ["no-such-verb"], ["--no-such-flag"], *([verb, "--no-such-flag"] for verb in verbs)]
    mistakes += [["serve", "--host", "192.0.2.1"]] if "serve" in verbs else []  # an address of another machine
    return call(target, name, [*helps, *mistakes], folder)


@pytest.mark.parametrize(("member", "name", "target"), COMMANDS, ids=IDS["COMMANDS"])
def test_help_version_and_mistakes_without_a_framework(member: Member, name: str, target: str, tmp_path: Path) -> None:
    session = asked(name, target, tmp_path)
    assert session.loaded == []
    for said in session.said:
        if said.arguments[-1:] == ["--help"]:
            assert (said.code, said.stderr) == (0, ""), said
            assert "Usage" in said.stdout
            if len(said.arguments) == 2:
                assert all(flag in said.stdout for flag in ("--json", "--quiet", "--verbose")), said.arguments
        elif said.arguments == ["--version"]:
            assert said.stdout == f"{name} {member.project['project']['version']}\n"
        else:
            assert said.code == 2 and said.one_line and said.stderr.startswith("error: "), said


@pytest.mark.parametrize(("member", "name", "target"), SYSTEMS, ids=IDS["SYSTEMS"])
def test_every_system_has_the_house_verbs_and_flags(member: Member, name: str, target: str) -> None:
    assert set(VERBS) - set(commands(target)) == set()
    missing = {(verb, flag) for verb, flags in FLAGS.items() for flag in flags if flag not in options(target, verb)}
    assert missing == set()
    undocumented = [verb for verb, command in commands(target).items() if not (command.help or "").strip()]
    assert undocumented == []


@pytest.mark.parametrize(("member", "name", "target"), COMMANDS, ids=IDS["COMMANDS"])
def test_a_flag_means_the_same_everywhere(member: Member, name: str, target: str) -> None:
    for verb in commands(target):
        for flag, option in options(target, verb).items():
            assert option.help, (verb, flag)
            if flag in MEANINGS and (name, verb, flag) not in OTHERWISE:
                kind = getattr(option.type_descriptor.annotation, "__name__", "")
                kind = str(option.type_descriptor.annotation) if kind == "list" else kind
                assert (kind, option.multiple, tuple(sorted(option.opts))) == MEANINGS[flag], (verb, flag)
            if flag == "--device":
                assert "auto" in [str(d) for d in option.type_descriptor.annotation]


def wrong(has: dict[str, set[str]], setting: str) -> list[list[str]]:
    """Command lines with one mistake each, for a system with these flags by verb."""
    lines = [
        ["train", "--set", "nokey"],
        ["train", "--set", "zzz.yyy=1"],
        ["train", "--set", f"{setting}z=1"],
        ["train", "--set", f"{setting}=[1,2]"],
        ["train", "--config", "missing.yaml"],
        ["train", "--config", "list.yaml"],
        ["train", "--config", "binary.yaml"],
        ["train", "--config", "folder"],
        ["train", "--seed", "-1"],
        ["train", "--seed", "one"],
        ["train", "--limit", "0"],
        ["train", "--device", "tpu"],
        ["serve", "--port", "70000"],
    ]
    return [line for line in lines if line[1] in has[line[0]]]


SETTING = {
    "rsr-net": "train.epochs",
    "nrms": "train.epochs",
    "seq2seq-keras": "train.epochs",
    "clara-absa": "train.epochs",
    "refrag": "loop.steps",
}


@pytest.mark.slow  # some packages import their framework before they look at the configuration
@pytest.mark.parametrize(("member", "name", "target"), SYSTEMS, ids=IDS["SYSTEMS"])
def test_wrong_input_is_one_line_with_code_2_and_writes_nothing(
    member: Member, name: str, target: str, tmp_path: Path
) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    lines = wrong({verb: set(options(target, verb)) for verb in VERBS}, SETTING[name])
    assert len(lines) >= 10
    session = call(target, name, lines, tmp_path)
    for said in session.said:
        assert said.code == 2 and said.one_line and said.stderr.startswith("error: "), said
        assert "Traceback" not in said.stderr
    assert any(f"Did you mean {SETTING[name]}?" in said.stderr for said in session.said)
    assert sorted(tmp_path.rglob("*")) == before


def configurations() -> list[tuple[Path, ast.ClassDef]]:
    """The dataclasses of all packages whose name says that they hold settings, but for Hydra's, which it fills in."""
    found = []
    for path in sorted(
        set(ROOT.glob("packages/*/src/**/*.py")) - set(ROOT.glob("packages/refrag/src/refrag/framework/*"))
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Settings")) and _dataclass(node):
                found.append((path, node))
    return found


def _dataclass(node: ast.ClassDef) -> str:
    return next((text for d in node.decorator_list if (text := ast.unparse(d)).startswith("dataclass")), "")


@pytest.mark.parametrize(("path", "node"), configurations(), ids=lambda v: getattr(v, "name", None) or v.parts[-2])
def test_configurations_are_frozen_and_every_field_is_documented(path: Path, node: ast.ClassDef) -> None:
    assert "frozen=True" in _dataclass(node), f"{path.name}: {node.name}"
    told = ast.get_docstring(node) or ""
    fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
    # A field that is a configuration itself is documented by its own class.
    names = [ast.unparse(f.target) for f in fields if not ast.unparse(f.annotation).endswith(("Config", "Settings"))]
    assert fields and [name for name in names if f"{name}:" not in told and f"{name}," not in told] == []


def shape(function: ast.FunctionDef) -> str:
    """A function without its name, its docstring and what it is decorated with."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return "\n".join(ast.unparse(statement) for statement in [function.args, *body])


def test_nothing_of_size_stands_twice() -> None:
    seen: dict[str, str] = {}
    twice = []
    for path in sorted([*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("shared/src/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (text := shape(node)).count("\n") >= 5:
                place = f"{path.relative_to(ROOT)}: {node.name}"
                if (first := seen.setdefault(text, place)) != place:
                    twice.append((first, place))
    assert len(seen) > 500 and twice == []
