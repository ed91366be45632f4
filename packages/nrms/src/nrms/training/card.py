"""The model card of a run: what it is, what it was trained on, how well it does, what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentlab_shared.errors import shell_word
from latentlab_shared.runs import RunFolder, model_card
from nrms.config import NrmsConfig
from nrms.data.log import ClickLog

_LIMITS = """
- It ranks by titles and clicks. What it has not seen clicked, and readers unlike those of the log, it knows badly.
- A click is not approval: the log rewards titles that draw clicks. Use `--diversity` and editorial filters, too.
- A reading history is personal data; the weights hold words, not readers, but the served database holds reads.
- Weights trained on MIND fall under its licence: research only, not to be passed on.
"""


def write_card(run: RunFolder, config: NrmsConfig, log: ClickLog, clicks: int, best: Mapping[str, Any] | None) -> None:
    """Write ``README.md`` of a run folder.

    Args:
        run: the folder.
        config: the sizes and rates.
        log: the training part.
        clicks: samples that were learnt from.
        best: the line of ``metrics.jsonl`` of the best epoch; None without a dev part.
    """
    model = config.model
    reads = " and ".join(("titles" if view == "title" else view) for view in model.views)
    network = "a pretrained transformer" if model.encoder == "transformer" else "self-attention over words"
    shown = "No dev part was given."
    if best is not None:
        names = ("auc", "mrr", "ndcg@5", "ndcg@10")
        values = ", ".join(f"{name} {best[f'dev_{name}']:.4f}" for name in names)
        shown = (
            f"Epoch {best['epoch']}, mean over the dev part's impressions: {values}. `nrms evaluate` gives intervals."
        )
    parts = (
        f"{len(log.articles) - 1:,} articles, {len(log):,} impressions, {len(log.users):,} readers, {clicks:,} clicks"
    )
    place = shell_word(run.path)
    run.write_card(
        model_card(
            "NRMS news recommender",
            f"Reads {reads} by {network}; vectors of {model.dim} numbers; the last {model.history_length} reads count.",
            {
                "Use": f"`nrms recommend --model {place} --history ID`, `nrms serve --model {place}`",
                "Training data": f"{parts}. Hashes of the files are in `environment.json`.",
                "Validation": shown,
                "Limits": _LIMITS,
            },
            run,
        )
    )
