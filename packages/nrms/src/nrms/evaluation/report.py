"""What an evaluation looks like: plots, and a page that stands alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.plots import COLOURS, html_table, image, new_figure, save_png, write_page
from latentlab_shared.runs import RunFolder
from nrms.evaluation.evaluate import METRICS, Evaluation

_SHOWN = {"auc": "AUC", "ndcg@10": "nDCG@10"}


def quality_plot(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """AUC and nDCG@10 of each row as bars with their intervals; the model among its baselines in its own colour."""
    figure, axes = new_figure(columns=len(_SHOWN), height=0.5 * len(rows) + 1.2)
    names = [str(row["name"]) for row in rows][::-1]
    for axis, (metric, title) in zip(axes, _SHOWN.items(), strict=True):
        values = [row["metrics"][metric] for row in rows][::-1]
        spans = [row["interval"][metric] for row in rows][::-1]
        around = [
            [value - low for value, (low, _) in zip(values, spans, strict=True)],
            [high - value for value, (_, high) in zip(values, spans, strict=True)],
        ]
        colours = [COLOURS[1] if name == "NRMS" else COLOURS[0] for name in names]
        axis.barh(names, values, xerr=around, color=colours, error_kw={"elinewidth": 1, "capsize": 2})
        axis.set(xlabel=title, xlim=(0, 1))
        axis.grid(visible=False, axis="y")
    axes[1].set_yticklabels([])
    return save_png(figure, path)


def training_plot(lines: Iterable[Mapping[str, Any]], path: Path) -> Path | None:
    """Loss by update and dev metrics by epoch; None for a run without either."""
    held = list(lines)
    losses = [(line["step"], line["loss"]) for line in held if "loss" in line]
    dev = [line for line in held if "dev_auc" in line]
    if not losses or not dev:
        return None
    figure, (left, right) = new_figure(columns=2)
    left.plot(*zip(*losses, strict=True))
    left.set(xlabel="update", title="Training loss")
    for metric in METRICS:
        right.plot([line["epoch"] for line in dev], [line[f"dev_{metric}"] for line in dev], marker="o", label=metric)
    right.set(xlabel="epoch", title="Dev part")
    right.legend(frameon=False)
    return save_png(figure, path)


def write_report(folder: Path, found: Evaluation, title: str, run: Path | None = None) -> Path:
    """Write ``plots/*.png`` and ``report.html``.

    Args:
        folder: where to.
        found: what was measured.
        title: of the page.
        run: the run folder of the model, for the course of its training; None without one.
    """
    plots = folder / "plots"
    kinds = image(quality_plot(found.slices, plots / "kinds.png"), "The model's figures")
    sections = [
        (
            "The model and what it has to beat",
            image(quality_plot(found.rows, plots / "quality.png"), "Means over impressions, 95 % intervals over users")
            + html_table(_flat(found.rows)),
        ),
        ("By kind of impression", kinds + html_table(_flat(found.slices))),
    ]
    if run is not None and (run / "metrics.jsonl").is_file():
        curve = training_plot(RunFolder.read(run).metrics(), plots / "training.png")
        if curve is not None:
            sections.append(("Training", image(curve, "Loss while training, metrics after each epoch")))
    account = {"impressions": found.impressions, "of one class, skipped": found.skipped, **found.notes}
    sections.append(("The data", html_table([{"what": what, "count": count} for what, count in account.items()])))
    lead = f"{found.impressions:,} impressions, model {found.model_id[:12]}. Ties: half in the AUC, else by position."
    return write_page(folder / "report.html", title, lead, sections)


def _flat(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with each metric and its interval in one cell."""
    flat = []
    for row in rows:
        cells: dict[str, Any] = {key: row[key] for key in ("name", "impressions") if key in row}
        for metric in METRICS:
            low, high = row["interval"][metric]
            cells[metric] = f"{row['metrics'][metric]:.4f} [{low:.4f}, {high:.4f}]"
        flat.append(cells)
    return flat
