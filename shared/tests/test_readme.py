"""The README's Python, run as it stands, in one folder from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_python_blocks_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error::DeprecationWarning:__main__"}
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "{'step': 3, 'loss': 0.3333333333333333}" in done.stdout


def test_the_commands_it_names_exist() -> None:
    named = set(re.findall(r"^latentlab-cache (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    command = [str(Path(sys.executable).parent / "latentlab-cache"), "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert named and all(f" {verb} " in helped for verb in named), named
