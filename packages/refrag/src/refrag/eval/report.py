"""An evaluation as a picture and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.files import write_json
from latentlab_shared.plots import COLOURS, html_table, image, new_figure, save_png, write_page

_LEAD = "Answers to questions that training has not seen, by how the same documents are given to the same model."


def write_report(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Write ``evaluation.json``, ``plots/answers.png`` and ``report.html`` below a run folder.

    Args:
        folder: of the run.
        rows: what ``evaluate_questions`` gives.

    Returns:
        The files by what they are.
    """
    write_json(folder / "evaluation.json", {"rows": list(rows)})
    plot = answers_plot(rows, folder / "plots" / "answers.png")
    caption = "Right values, and citations of the right document, by what the decoder had to read"
    sections = [("Answers", image(plot, caption) + html_table(rows))]
    page = write_page(folder / "report.html", "Answers from compressed context", _LEAD, sections)
    return {"rows": str(folder / "evaluation.json"), "plot": str(plot), "report": str(page)}


def answers_plot(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Right values and right citations, two bars for each way to give the documents, with its mean positions."""
    figure, axes = new_figure(columns=2, height=1.2 + 0.32 * len(rows))
    names = [f"{row['name']} ({row['positions']:.0f})" for row in rows]
    for axis, (column, title) in zip(axes, (("value", "right value"), ("gold_cited", "right citation")), strict=True):
        bars = axis.barh(names, [row[column] for row in rows], color=COLOURS[0])
        axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=3)
        axis.set(xlabel=f"share of questions, {title}", xlim=(0, 1.12))
        axis.invert_yaxis()
    axes[0].set_ylabel("given as (positions the decoder reads)")
    axes[1].set_yticklabels([])
    return save_png(figure, path)
