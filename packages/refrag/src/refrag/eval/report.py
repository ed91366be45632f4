"""An evaluation as a picture and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.files import write_json
from latentlab_shared.plots import html_table, image, new_figure, save_png, write_page

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
    """Right values and right citations over mean positions, a mark for each way to give the documents."""
    figure, axes = new_figure(columns=2)
    for axis, (column, title) in zip(axes, (("value", "right value"), ("gold_cited", "right citation")), strict=True):
        for row in rows:
            kind = str(row["name"]).rstrip("0123456789. ")
            marker = {"gate": "o", "oracle": "*"}.get(kind, "x" if row["name"][-1].isdigit() else "s")
            axis.scatter(row["positions"], row[column], marker=marker)
            place = (row["positions"], row[column])
            axis.annotate(row["name"], place, fontsize=6, xytext=(3, 3), textcoords="offset points")
        axis.set(xlabel="positions the decoder reads", ylabel=f"share of questions, {title}", ylim=(-0.03, 1.08))
    return save_png(figure, path)
