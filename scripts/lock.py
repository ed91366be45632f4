"""Write requirements.lock (pinned, with hashes, without addresses), or with --check fail when it is out of date.

uv.lock names the index that each file came from, so it is generated and not committed. What it holds follows from
pyproject.toml alone: ``exclude-newer`` hides every later release, and folders of local wheels are left out here. The
check keeps to the versions that the file pins wherever pyproject.toml allows them: an index may learn of an old release
late, and that must not fail anybody's change.
"""

import argparse
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
HEADER = "# Written by `make lock`: every dependency of every package, pinned and hashed. Do not edit.\n"


def pins(held: str) -> list[str]:
    """The pinned versions of a lock, with their markers."""
    return [line.removesuffix("\\").strip() for line in held.splitlines() if re.match(r"[A-Za-z0-9][^ ]*==", line)]


def resolve(uv: str, kept: list[str]) -> str:
    """Resolve a copy of the workspace's metadata, so that an uv.lock in the checkout has no say.

    Args:
        uv: the program.
        kept: versions to keep to.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("UV_FIND_LINKS", "VIRTUAL_ENV")}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for project in [ROOT, ROOT / "shared", *sorted(p.parent for p in ROOT.glob("packages/*/pyproject.toml"))]:
            target = copy / project.relative_to(ROOT)
            target.mkdir(parents=True, exist_ok=True)
            for name in ("pyproject.toml", "build_backend.py", "README.md"):
                if (project / name).is_file():
                    shutil.copy(project / name, target / name)
        if kept:
            root = (copy / "pyproject.toml").read_text(encoding="utf-8")
            more = "".join(f", {json.dumps(pin)}" for pin in kept)
            root, found = re.subn(r"(?m)^(constraint-dependencies = \[.*)\]$", lambda m: f"{m[1]}{more}]", root)
            assert found == 1, "pyproject.toml: constraint-dependencies is not on one line"
            (copy / "pyproject.toml").write_text(root, encoding="utf-8")
        flags = ["--all-packages", "--all-groups", "--no-emit-workspace", "--no-header", "--no-annotate", "--quiet"]
        done = subprocess.run(
            [uv, "export", "--format", "requirements-txt", *flags], cwd=copy, env=env, capture_output=True, text=True
        )
    if done.returncode and kept:
        return resolve(uv, [])  # pyproject.toml no longer allows a version that is pinned
    if done.returncode:
        sys.exit(f"error: uv could not resolve the workspace:\n{done.stderr.strip()}")
    return HEADER + done.stdout


def main() -> int:
    """Write or check the file; the exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--uv", default="uv", help="the uv to use")
    arguments = parser.parse_args()
    uv = shutil.which(arguments.uv)
    if uv is None:
        print(f"error: there is no program {arguments.uv}. Run: make install", file=sys.stderr)
        return 2
    uv = os.path.abspath(uv)  # it is called from another folder
    held = LOCK.read_text(encoding="utf-8") if LOCK.exists() else ""
    wanted = resolve(uv, pins(held) if arguments.check else [])
    if not arguments.check:
        LOCK.write_text(wanted, encoding="utf-8")
        subprocess.run([uv, "lock", "--quiet"], cwd=ROOT, check=True)
        print(f"wrote {LOCK.name}: {sum('==' in line for line in wanted.splitlines())} packages")
        return 0
    if held == wanted:
        print(f"{LOCK.name} agrees with pyproject.toml")
        return 0
    changes = [line for line in difflib.unified_diff(held.splitlines(), wanted.splitlines(), "held", "wanted", n=0)]
    print("\n".join(changes[:40]))
    print(f"error: {LOCK.name} is out of date. Run: make lock")
    return 1


if __name__ == "__main__":
    sys.exit(main())
