"""CNN/DailyMail from the hub, through ``datasets``, imported only when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from latentlab_shared.errors import NeedsExtra, NeedsNetwork, UserError
from rsr_net.data.readers import BadRows, example_of
from rsr_net.data.stories import SPLITS
from rsr_net.data.types import Example

DEFAULT = "abisee/cnn_dailymail"
CONFIGURATION = "3.0.0"
_TIMEOUT = 5.0
_HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def read_hub(name: str = DEFAULT, split: str | None = "train", bad: BadRows | None = None) -> Iterator[Example]:
    """Stream a part of a hub dataset with columns article, highlights and id.

    Args:
        name: ``OWNER/NAME``, or ``OWNER/NAME@CONFIGURATION``; CNN/DailyMail's is 3.0.0. A local folder works too.
        split: "train", "valid" or "test"; None reads all three.
        bad: what to do with malformed rows.

    Raises:
        NeedsExtra: without the package ``datasets``.
        NeedsNetwork: when the hub cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise NeedsExtra("datasets", "hub", "latentlab-rsr-net") from None
    bad = BadRows() if bad is None else bad
    path, _, configuration = name.partition("@")
    path = path or DEFAULT
    if not configuration and path == DEFAULT:
        configuration = CONFIGURATION
    if not Path(path).is_dir():
        _reach(path)
    for part in (split,) if split else SPLITS:
        try:
            rows = datasets.load_dataset(path, configuration or None, split=_HUB_SPLITS[part], streaming=True)
            first = next(iter(rows), None)
        except (OSError, ValueError, RuntimeError) as error:
            raise _unreachable(path, error) from None
        if first is not None and not {"article", "highlights"} <= first.keys():
            raise UserError(f"the columns are {', '.join(first)}", path, "Needed are article and highlights")
        for number, row in enumerate(rows):
            where = f"{path}, {part} row {number}"
            try:
                yield example_of(row, where, f"{part}-{number}")
            except UserError as error:
                bad.report(error)


def _reach(path: str) -> None:
    """One question to the hub, so that a missing network shows at once and not after half a minute of retries."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(path, timeout=_TIMEOUT)
    except RepositoryNotFoundError:
        raise UserError("there is no such public dataset on the hub", path, "Check the spelling") from None
    except HFValidationError:
        raise UserError("is neither a folder nor a hub name", path, "A hub name is OWNER/NAME") from None
    except Exception as error:  # the hub's client has changed its HTTP library, and so its errors, more than once
        raise _unreachable(path, error) from None


def _unreachable(path: str, error: Exception) -> NeedsNetwork:
    return NeedsNetwork(
        f"the dataset cannot be loaded ({' '.join(str(error).split())[:160]})",
        path,
        "Offline, give --data a folder of .story or .jsonl files, or use the built-in --data sample",
    )
