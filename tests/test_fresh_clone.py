"""The uses of the design card, each from a fresh clone and in a clean environment (slow)."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest
from workspace import ROOT, Member, members

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PACKAGES = [m for m in members() if m.folder.name != "shared"]
# Not imported: what alembic runs itself, and scripts that run a peer in an environment of its own.
IMPORT_ALL = (
    "import importlib, pkgutil, sys\n"
    "top = importlib.import_module(sys.argv[1])\n"
    "names = [m.name for m in pkgutil.walk_packages(top.__path__, top.__name__ + '.')]\n"
    "names = [n for n in names if not any(part in n for part in ('main', 'migrations', '.peer_'))]\n"
    "[importlib.import_module(n) for n in names]\n"
    "print(len(names), 'modules')"
)


@cache
def path_with_uv() -> str:
    """PATH as a user of `uv run` has it; where make fetched uv, it is on none yet."""
    path = os.environ["PATH"]
    if shutil.which("uv"):
        return path
    tools = Path(tempfile.mkdtemp(prefix="uv-"))
    atexit.register(shutil.rmtree, tools, ignore_errors=True)
    (tools / "uv").symlink_to(os.environ.get("UV") or ROOT / ".uv" / "bin" / "uv")
    return f"{tools}{os.pathsep}{path}"


def sh(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    # `uv run` and make leave their own marks (UV, MAKEFLAGS, ...), which a fresh shell would not have.
    ours = ("VIRTUAL_ENV", "PYTHONPATH", "UV", "UV_PROJECT_ENVIRONMENT", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    kept = {k: v for k, v in os.environ.items() if k not in ours}
    search = {"PATH": path_with_uv(), **env}
    command = (shutil.which(command[0], path=search["PATH"]) or command[0], *command[1:])
    done = subprocess.run(command, cwd=cwd, env={**kept, **search}, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("clone") / "lab"
    sh("git", "clone", "--quiet", str(ROOT), str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def constraint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The torch series of the workspace: pip would otherwise fetch the newest, with several GB of CUDA."""
    path = tmp_path_factory.mktemp("pip") / "constraints.txt"
    path.write_text("torch==2.13.0\n")
    return path


def clean_environment(folder: Path) -> Path:
    sh(sys.executable, "-m", "venv", str(folder), cwd=folder.parent)
    return folder / "bin" / "python"


def uses(python: Path, member: Member, cwd: Path) -> None:
    """Import every module with only the package's own dependencies, and run its command."""
    sh(str(python), "-m", "pip", "check", cwd=cwd)
    sh(str(python), "-c", IMPORT_ALL, member.module, cwd=cwd)
    answers(python, member, cwd)


def answers(python: Path, member: Member, cwd: Path) -> None:
    for name in member.scripts:
        assert name in sh(str(python.parent / name), "--version", cwd=cwd).stdout


def test_make_train_and_uv_run_pytest(clone: Path) -> None:
    sh("make", "train-rsr", "ARGS=--json --output-dir runs/rsr_net/card --set train.epochs=2", cwd=clone)
    assert (clone / "runs" / "rsr_net" / "card" / "README.md").is_file()
    done = sh("uv", "run", "pytest", "-q", "packages/rsr_net", "-k", "sample", cwd=clone)
    assert " passed" in done.stdout
    status = sh("git", "status", "--porcelain", cwd=clone).stdout
    assert status == "", "using the workspace must leave the checkout clean"


@pytest.mark.long
def test_make_fetches_uv_where_it_is_missing(clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sh", "git", "grep", "sed", "awk", "ln", "mkdir", "rm", "cat", "env", "uname", "ldd", "make"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    (tools / "python3").symlink_to(sys._base_executable)
    fresh = tmp_path / "lab"
    sh("git", "clone", "--quiet", str(ROOT), str(fresh), cwd=ROOT)
    sh(str(tools / "make"), "install", cwd=fresh, PATH=str(tools))
    assert (fresh / ".uv" / "bin" / "uv").exists() and (fresh / ".venv" / "bin" / "rsr-net").exists()


def pip(python: Path, *words: str, cwd: Path) -> None:
    sh(str(python), "-m", "pip", "install", "-q", "--no-compile", *words, cwd=cwd)


def uv_pip(python: Path, *words: str, cwd: Path) -> None:
    sh("uv", "pip", "install", "-q", "-p", str(python), *words, cwd=cwd)


@pytest.mark.parametrize("member", PACKAGES, ids=[m.name for m in PACKAGES])
def test_install_alone(member: Member, clone: Path, constraint: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "env")
    source = f"./packages/{member.folder.name}"
    uv_pip(python, "-c", str(constraint), source, cwd=clone)
    uses(python, member, tmp_path)
    # And with pip, which unpacks torch for a minute where uv links it: so the large ones stay.
    sh(str(python), "-m", "pip", "uninstall", "-q", "-y", member.name, "latentlab-shared", cwd=clone)
    pip(python, "-c", str(constraint), source, cwd=clone)
    answers(python, member, tmp_path)


@pytest.mark.long
def test_pip_install_from_git(clone: Path, constraint: Path, tmp_path: Path) -> None:
    member = PACKAGES[0]  # the packages are built alike; one shows the way
    python = clean_environment(tmp_path / "env")
    pip(python, "-c", str(constraint), f"git+file://{clone}#subdirectory=packages/{member.folder.name}", cwd=tmp_path)
    uses(python, member, tmp_path)


def test_wheels_name_no_folder_and_install(clone: Path, constraint: Path, tmp_path: Path) -> None:
    sh("uv", "build", "--quiet", "--all-packages", "--out-dir", str(tmp_path / "dist"), cwd=clone)
    wheels = sorted((tmp_path / "dist").glob("*.whl"))
    assert len(wheels) == len(PACKAGES) + 1
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("METADATA")]
            assert b"file://" not in archive.read(name)
            assert not [n for n in archive.namelist() if "/tests/" in n]
    python = clean_environment(tmp_path / "env")
    names = [member.name for member in PACKAGES]
    links = ["--find-links", str(tmp_path / "dist")]
    uv_pip(python, "-c", str(constraint), *links, *names, cwd=tmp_path)
    sh(str(python), "-m", "pip", "check", cwd=tmp_path)
    for member in PACKAGES:
        answers(python, member, tmp_path)


def test_an_installed_package_does_its_job_without_the_checkout(clone: Path, constraint: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "env")
    uv_pip(python, "-c", str(constraint), "./packages/rsr_net", cwd=clone)
    command = str(python.parent / "rsr-net")
    sh(command, "train", "--json", "--set", "train.epochs=2", cwd=tmp_path)
    (tmp_path / "a.txt").write_text("The river rose by two metres. Schools were closed. Nobody was hurt. It went on.")
    summary = json.loads(sh(command, "summarize", "a.txt", "--json", cwd=tmp_path).stdout)
    assert summary
