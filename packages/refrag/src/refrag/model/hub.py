"""The token for a hub of models: from the environment, or none."""

import os

MARKER = "hf_fake_token_use_env"  # the seed's stand-in for a token: it is never sent anywhere


def hub_token() -> str | bool | None:
    """What to give as ``token=``: ``HF_TOKEN``; False, which sends none, for the seed's stand-in; None if unset.

    With None, a token that ``hf auth login`` has kept is used, as everywhere in transformers.
    """
    found = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    return False if found == MARKER else found
