"""Build with hatchling; inside the checkout, require ``latentlab-shared`` by path.

pip ignores ``[tool.uv.sources]``, so ``pip install ./packages/<name>`` would look for the shared package on an index.
This file is the same in every package (a test compares the copies).
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling import build
from hatchling.build import *  # noqa: F403  (the hooks a build frontend looks for)
from hatchling.metadata.plugin.interface import MetadataHookInterface

SHARED = "latentlab-shared"
# An environment variable, because hatchling loads this file a second time as a plugin: a global would not be seen.
BY_NAME = "LATENTLAB_DEPEND_BY_NAME"


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """Name the shared package in an sdist: it, and any wheel made from it, is installed elsewhere."""
    before = os.environ.get(BY_NAME)
    os.environ[BY_NAME] = "1"
    try:
        return build.build_sdist(sdist_directory, config_settings)
    finally:
        if before is None:
            del os.environ[BY_NAME]


class Dependencies(MetadataHookInterface):
    """Fills ``project.dependencies`` from the hook's own table."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Point the shared package at its folder, when this is a checkout."""
        folder = Path(self.root).parents[1] / "shared"
        in_checkout = (folder / "pyproject.toml").is_file() and BY_NAME not in os.environ
        metadata["dependencies"] = [
            by_path(requirement, folder) if in_checkout else requirement for requirement in self.config["dependencies"]
        ]


def by_path(requirement: str, folder: Path) -> str:
    """``latentlab-shared[x]>=0.1`` becomes ``latentlab-shared[x] @ file:///…/shared``; others stay."""
    found = re.fullmatch(rf"({SHARED}(?:\[[^\]]*\])?)\s*(?:[<>=!~].*)?", requirement)
    return f"{found[1]} @ {folder.as_uri()}" if found else requirement
