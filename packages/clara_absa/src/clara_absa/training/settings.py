"""What a run was trained on, and how its examples are found again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clara_absa.configs.base_config import ClaraConfig
from clara_absa.configs.schema import Example
from clara_absa.data_utils.readers import read_file
from clara_absa.data_utils.splits import KINDS, PARTS, Kind, Part, read_part
from latentlab_shared.config import from_dict
from latentlab_shared.errors import UserError
from latentlab_shared.runs import RunFolder

Progress = Callable[[str, float | None], AbstractContextManager[Callable[[float], None]]]
"""Opens a bar of a description and a total, as `latentlab_shared.cli.Output.progress` does."""


@contextmanager
def no_progress(description: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """Shows nothing."""
    yield lambda _: None


@dataclass(frozen=True)
class RunSettings:
    """What a run was trained on; saved with it.

    Attributes:
        data: "sample", a file or a folder.
        task: "atsa", "acsa" or "joint".
        limit: training sentences at most.
        seed: of the generated data and of training.
        teacher: a run whose answers are distilled.
        clara: the model and its training.
    """

    data: str = "sample"
    task: Kind = "atsa"
    limit: int | None = None
    seed: int = 0
    teacher: str | None = None
    clara: ClaraConfig = field(default_factory=ClaraConfig)


def settings_in(run: RunFolder) -> RunSettings:
    """What a run was started with.

    Raises:
        UserError: for a damaged configuration.
    """
    place = run.path / "config.json"
    if not {"data", "seed", "clara"} <= run.config.keys():  # defaults would be another run's settings
        raise UserError("this is no configuration of `clara-absa train`", place, "Train anew")
    return from_dict(RunSettings, run.config, place)


def examples_of(
    source: str, part: Part, task: Kind = "atsa", *, limit: int | None = None, seed: int = 0, whole: bool = False
) -> list[Example]:
    """Examples of a part of "sample", a file or a folder.

    Args:
        source: where they are.
        part: "train", "val" or "test".
        task: "atsa", "acsa" or "joint".
        limit: examples at most.
        seed: of generated ones.
        whole: take all of a file, which was not trained on, whatever the part; else it is split.
    """
    if task not in KINDS:
        raise UserError(f"{task!r} is not a task", "--task", f"Use one of: {', '.join(KINDS)}")
    if part not in PARTS:
        raise UserError(f"{part!r} is not a part", "--split", f"Use one of: {', '.join(PARTS)}")
    if source == "sample":
        from clara_absa.sample.generator import sample_part

        return sample_part(part, seed, limit)
    path = Path(source).expanduser()
    if whole and path.is_file():
        return read_file(path, limit=limit)
    return read_part(path, part, task, limit=limit)


def is_lone_file(source: str) -> bool:
    """Whether training data is one file, which `read_part` splits."""
    return source != "sample" and Path(source).expanduser().is_file()
