"""Every command of every package speaks the same grammar."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from workspace import Member, members

from latentlab_shared.cli import VERBS

COMMANDS = [(m, name, target) for m in members() for name, target in m.scripts.items()]
SYSTEMS = [(m, name, target) for m, name, target in COMMANDS if m.folder.name != "shared"]
HEAVY = ("torch", "tensorflow", "keras", "transformers", "peft", "sklearn", "scipy", "matplotlib", "pyarrow", "pandas")


def call(target: str, name: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command's entry point as its script would, and say on exit which heavy modules it had loaded."""
    module, function = target.split(":")
    code = (
        "import atexit, sys\n"
        f"heavy = {HEAVY!r}\n"
        "atexit.register(lambda: sys.stderr.write(''.join(f'\\nLOADED {m}' for m in heavy if m in sys.modules)))\n"
        f"sys.argv = {[name, *arguments]!r}\n"
        f"from {module} import {function}\n"
        f"{function}()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=cwd)


def verbs_of(target: str) -> list[str]:
    module, _ = target.split(":")
    code = f"import {module} as m, typer, json; print(json.dumps(list(typer.main.get_command(m.app).commands)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return list(json.loads(done.stdout))


@pytest.mark.parametrize(("member", "name", "target"), COMMANDS, ids=[c[1] for c in COMMANDS])
def test_help_version_and_mistakes(member: Member, name: str, target: str) -> None:
    helped = call(target, name, "--help")
    assert helped.returncode == 0 and "LOADED" not in helped.stderr, helped.stderr
    version = call(target, name, "--version")
    assert version.stdout == f"{name} {member.project['project']['version']}\n"
    for wrong in ([], ["no-such-verb"], ["--no-such-flag"]):
        done = call(target, name, *wrong)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.strip().count("\n") == 0 and done.stderr.startswith("error: "), done.stderr


@pytest.mark.parametrize(("member", "name", "target"), COMMANDS, ids=[c[1] for c in COMMANDS])
def test_every_verb_explains_itself_without_loading_a_framework(member: Member, name: str, target: str) -> None:
    for verb in verbs_of(target):
        done = call(target, name, verb, "--help")
        assert done.returncode == 0 and "LOADED" not in done.stderr, (verb, done.stderr)
        for flag in ("--json", "--quiet", "--verbose"):
            assert flag in done.stdout, (verb, flag)


@pytest.mark.parametrize(("member", "name", "target"), SYSTEMS, ids=[c[1] for c in SYSTEMS])
def test_every_system_has_the_house_verbs(member: Member, name: str, target: str) -> None:
    missing = set(VERBS) - set(verbs_of(target))
    assert missing == set()
