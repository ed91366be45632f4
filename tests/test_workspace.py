"""What the workspace promises about its packages, read from their metadata."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from workspace import ROOT, Member, members

MEMBERS = members()
IDS = [m.name for m in MEMBERS]
PACKAGES = [m for m in MEMBERS if m.folder.name != "shared"]


def test_the_top_level_is_the_design_card() -> None:
    for name in ("packages", "shared", "tests", "scripts"):
        assert (ROOT / name).is_dir(), name
    for name in ("pyproject.toml", "requirements.lock", "Makefile", "README.md", "CONTRIBUTING.md", "LICENSE"):
        assert (ROOT / name).is_file(), name
    for name in ("rsr_net", "seq2seq_keras", "clara_absa", "nrms", "refrag"):
        assert (ROOT / "packages" / name / "README.md").is_file(), name


def test_build_backends_are_one_file() -> None:
    copies = {p.read_text() for p in ROOT.glob("packages/*/build_backend.py")}
    assert len(copies) == 1
    assert all((m.folder / "build_backend.py").is_file() for m in PACKAGES)


@pytest.mark.parametrize("member", MEMBERS, ids=IDS)
def test_metadata(member: Member) -> None:
    # An unprefixed name can be taken by a stranger on a public index, and pip would install the stranger.
    assert member.name.startswith("latentlab-")
    assert member.project["project"]["requires-python"] == ">=3.11,<3.14"
    assert member.project["project"]["license"] == "MIT"
    assert (member.folder / "src" / member.module / "py.typed").is_file()
    assert (member.folder / "README.md").read_text().startswith("# ")


@pytest.mark.parametrize("member", MEMBERS, ids=IDS)
def test_the_root_knows_every_member(member: Member) -> None:
    top = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert member.folder.relative_to(ROOT).as_posix() in top["tool"]["uv"]["workspace"]["members"]
    assert top["tool"]["uv"]["sources"][member.name] == {"workspace": True}
    # Without this, `uv run pytest packages/<name>` fails in a fresh clone.
    assert any(re.match(rf"{member.name}(\[|$)", d) for d in top["dependency-groups"]["dev"])
    assert member.module in top["tool"]["importlinter"]["root_packages"]


def test_packages_do_not_depend_on_each_other() -> None:
    names = {m.name for m in PACKAGES}
    for member in PACKAGES:
        needs = member.project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["dependencies"]
        assert any(re.match(r"latentlab-shared\b", need) for need in needs)
        assert not [need for need in needs if re.split(r"[\[<>= @]", need)[0] in names]


def test_the_build_backend_points_pip_at_the_checkout(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from build_backend import by_path\n"
        "here = Path('/x/shared')\n"
        "print(by_path('latentlab-shared[a,b]>=0.1', here), by_path('torch>=2', here),"
        " by_path('latentlab-shared', here), by_path('latentlab-shared-more>=1', here), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(PACKAGES[0].folder)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split("\n")[:4] == [
        "latentlab-shared[a,b] @ file:///x/shared",
        "torch>=2",
        "latentlab-shared @ file:///x/shared",
        "latentlab-shared-more>=1",
    ], done.stderr


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_lock_with_addresses_is_committed() -> None:
    assert "uv.lock" not in {p.name for p in tracked()}
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and lock.count("--hash=sha256:") > 100


def test_nothing_reads_pickles() -> None:
    bad = re.compile(
        r"^\s*(import|from)\s+(pickle|dill|cloudpickle|joblib|shelve)\b|allow_pickle=True|weights_only=False|torch\.load\("
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        if path.suffix == ".py" and "tests" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bad.search(line) and "weights_only=True" not in line
    ]
    assert found == []


def test_no_file_is_longer_than_600_lines_or_very_large() -> None:
    long = [p for p in tracked() if p.suffix == ".py" and len(p.read_text().splitlines()) > 600]
    large = [p for p in tracked() if p.stat().st_size > 2**20]
    assert (long, large) == ([], [])


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
