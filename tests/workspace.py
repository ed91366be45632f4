"""What the tests of the whole workspace share."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Member:
    """One installable package of the workspace."""

    folder: Path
    project: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.project["project"]["name"])

    @property
    def module(self) -> str:
        (package,) = self.project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        return Path(package).name

    @property
    def scripts(self) -> dict[str, str]:
        return dict(self.project["project"].get("scripts", {}))


def members() -> list[Member]:
    """The workspace's members; a package that is in work is not among them."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    return [Member(ROOT / name, tomllib.loads((ROOT / name / "pyproject.toml").read_text())) for name in listed]
