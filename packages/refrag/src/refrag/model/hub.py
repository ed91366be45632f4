"""A hub of models: its token, from the environment or none, and the libraries that ask it."""

import os
from typing import Any

MARKER = "hf_fake_token_use_env"  # the seed's stand-in for a token: it is never sent anywhere


def hub_token() -> str | bool | None:
    """What to give as ``token=``: ``HF_TOKEN``; False, which sends none, for the seed's stand-in; None if unset.

    With None, a token that ``hf auth login`` has kept is used, as everywhere in transformers.
    """
    found = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    return False if found == MARKER else found


def silence() -> None:
    """No progress bars, load reports and retries of the libraries': stderr is for our own lines."""
    from huggingface_hub.utils import logging as of_hub
    from transformers.utils import logging as of_transformers

    hub: Any = of_hub  # their functions have no types
    library: Any = of_transformers
    library.disable_progress_bar()
    library.set_verbosity_error()
    hub.set_verbosity_error()
