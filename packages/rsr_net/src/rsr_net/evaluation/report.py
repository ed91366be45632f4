"""What an evaluation looks like: the convergence curve as PNG, and a page that stands alone."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.plots import COLOURS, html_table, image, new_figure, save_png, write_page
from rsr_net.data.types import Example
from rsr_net.evaluation.held_out import HeldOut


def convergence_plot(found: HeldOut, path: Path) -> Path:
    """R² and centred R@1 after each step, and how far each step moved the state, to three times the trained depth."""
    figure, (left, right) = new_figure(columns=2)
    at = [row["step"] for row in found.steps]
    depth = int(found.stopping["steps"])
    left.plot(at, [row["r2"] for row in found.steps], marker="o", markersize=3, label="R²")
    left.plot(at, [row["centred_r_at_1"] for row in found.steps], marker="s", markersize=3, label="centred R@1")
    left.axvline(depth, color=COLOURS[6], linewidth=0.8, linestyle=":", label="trained depth")
    left.set(xlabel="step", title="The state after each step", ylim=(min(0, min(r["r2"] for r in found.steps)), 1.05))
    left.legend(frameon=False)
    right.semilogy(at[1:], [max(row["residual"], 1e-9) for row in found.steps[1:]], marker="o", markersize=3)
    right.axvline(depth, color=COLOURS[6], linewidth=0.8, linestyle=":")
    right.set(xlabel="step", title="How far each step moves it (mean relative residual)")
    return save_png(figure, path)


def extraction_plot(found: HeldOut, path: Path) -> Path:
    """ROUGE-Lsum of the picks, from the lead to the oracle."""
    figure, (axis,) = new_figure(width=6.5, height=2.8)
    names = [row["sentences"] for row in found.extraction][::-1]
    values = [row["rougeLsum"] for row in found.extraction][::-1]
    colours = [COLOURS[1] if "refined" in name else COLOURS[0] for name in names]
    axis.barh(names, values, color=colours)
    for place, value in enumerate(values):
        axis.text(value, place, f" {value:.1f}", va="center", fontsize=9)
    axis.set(xlabel="ROUGE-Lsum F1")
    axis.grid(visible=False, axis="y")
    return save_png(figure, path)


def write_report(folder: Path, found: HeldOut, title: str, about: str, shown: Sequence[tuple[Example, str]]) -> Path:
    """Write ``plots/*.png`` and ``report.html`` below a run folder.

    Args:
        folder: the run folder.
        found: the measurement.
        title: of the page.
        about: a sentence on the data, the date and the code.
        shown: articles with the summaries that the model picked.

    Returns:
        The page.
    """
    plots = folder / "plots"
    curve = convergence_plot(found, plots / "convergence.png")
    bars = extraction_plot(found, plots / "extraction.png")
    stopping = found.stopping
    notes: dict[str, Any] = {k: v for k, v in found.confidence.items() if k not in ("reliability", "event")}
    halted = (
        f"Halting each article by itself uses {stopping['steps_used']:.1f} of {stopping['steps']:.0f} steps "
        f"({100 * stopping['saved']:.0f} % fewer) and changes R² by {-stopping['r2_lost']:+.4f}."
    )
    sections = [
        ("The embedding of the summary", html_table(found.embedding)),
        ("Convergence", image(curve, "Held-out articles") + f"<p>{html.escape(halted)}</p>"),
        (
            "The sentences it picks",
            image(bars, found.signature) + html_table(found.extraction) + html_table(found.differences),
        ),
        (
            "Confidence",
            f"<p>The event: {html.escape(found.confidence['event'])}.</p>"
            + html_table([notes])
            + html_table([vars(row) for row in found.confidence["reliability"]]),
        ),
        ("Every step", html_table(found.steps)),
        ("Some of its summaries", "".join(_example(example, text) for example, text in shown)),
    ]
    return write_page(folder / "report.html", title, about, sections)


def _example(example: Example, picked: str) -> str:
    parts = (("Picked", picked), ("Written by a person", example.summary), ("The first three sentences", example.lead))
    return html_table([{"": name, example.id: text} for name, text in parts])
