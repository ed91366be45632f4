"""What an evaluation looks like: attention as PNG, and a page of samples that stands alone."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlab_shared.plots import COLOURS, html_table, image, new_figure, save_png, write_page
from seq2seq_keras.evaluation.evaluate import Evaluation

if TYPE_CHECKING:
    from seq2seq_keras.inference.summarizer import Summary


def attention_plot(summary: Summary, path: Path) -> Path:
    """The attention of each word on the source, and below it how far each word was copied."""
    rows, columns = len(summary.words), len(summary.source)
    width = min(22.0, 3.2 + 0.27 * columns)
    figure, axes = new_figure(width=width, height=2.2 + 0.3 * rows)
    axis = axes[0]
    shown = axis.imshow(summary.attention, aspect="auto", cmap="Blues", vmin=0.0, vmax=1.0)
    axis.set_xticks(range(columns), summary.source, rotation=70, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(rows), summary.words, fontsize=9)
    axis.set(xlabel="source", ylabel="summary", title="Attention of each written word")
    axis.grid(visible=False)
    figure.colorbar(shown, ax=axis, fraction=0.02, pad=0.01, label="attention")
    if summary.copied:
        axis.set_yticks(
            range(rows),
            [f"{word}  ({share:.0%} copied)" for word, share in zip(summary.words, summary.copied, strict=True)],
            fontsize=9,
        )
    return save_png(figure, path)


def copy_plot(summary: Summary, path: Path) -> Path:
    """A strip: how far each word of the summary was copied rather than written."""
    figure, (axis,) = new_figure(width=max(4.0, 1.0 * len(summary.words)), height=1.7)
    axis.imshow([summary.copied], aspect="auto", cmap="Oranges", vmin=0.0, vmax=1.0)
    axis.set_xticks(range(len(summary.words)), summary.words, rotation=30, ha="right", fontsize=9)
    axis.set_yticks([])
    for place, share in enumerate(summary.copied):
        axis.text(place, 0, f"{share:.0%}", ha="center", va="center", fontsize=9, color="white" if share > 0.6 else "k")
    axis.set(title="Copied (dark) or written (light)")
    axis.grid(visible=False)
    return save_png(figure, path)


def scores_plot(found: Evaluation, path: Path) -> Path:
    """Token F1 of the model and of every baseline, with 95 % intervals."""
    rows = found.rows[::-1]
    figure, (axis,) = new_figure(width=6.5, height=0.4 * len(rows) + 1.2)
    values = [row["metrics"]["f1"] for row in rows]
    ends = [row["interval"]["f1"] for row in rows]
    pairs = list(zip(values, ends, strict=True))
    errors = [[value - low for value, (low, _) in pairs], [high - value for value, (_, high) in pairs]]
    colours = [COLOURS[1] if row["name"] == "model" else COLOURS[0] for row in rows]
    axis.barh([row["name"] for row in rows], values, xerr=errors, color=colours, ecolor="#555", capsize=2)
    axis.set(xlabel="token F1", xlim=(0, 1))
    axis.grid(visible=False, axis="y")
    return save_png(figure, path)


def marked(summary: Summary) -> str:
    """A summary as HTML: words that were copied stand on a tint, the darker the surer."""
    shares = summary.copied or (0.0,) * len(summary.words)
    return " ".join(
        f'<span style="background:rgba(213,94,0,{0.45 * share:.2f});border-radius:3px">{html.escape(word)}</span>'
        for word, share in zip(summary.words, shares, strict=True)
    )


def write_report(folder: Path, found: Evaluation, title: str) -> Path:
    """Write ``plots/*.png`` and ``report.html``; returns the page."""
    plots = folder / "plots"
    first = found.samples[0][2]
    pictures = image(attention_plot(first, plots / "attention.png"), f"“{first.text}”")
    if first.copied:
        pictures += image(copy_plot(first, plots / "copied.png"), "The same summary, word by word")
    bars = image(scores_plot(found, plots / "scores.png"), "Token F1 with 95 % intervals")
    samples = "".join(
        f"<tr><td>{html.escape(e.text[:700])}</td><td>{html.escape(reference)}</td><td>{marked(summary)}</td></tr>"
        for e, reference, summary in found.samples
    )
    sections = [
        ("Scores", bars + html_table(_flat(found.rows)) + f"<p>{html.escape(found.signature)}</p>"),
        ("Model minus baseline, 95 % intervals", html_table([_with_intervals(row) for row in found.gains])),
        ("Behaviour", html_table(found.behaviour)),
        ("Attention", pictures),
        (
            "Samples",
            '<div class="wide"><table><thead><tr><th>source</th><th>target</th><th>prediction (tint: copied)</th>'
            f"</tr></thead><tbody>{samples}</tbody></table></div>",
        ),
    ]
    return write_page(folder / "report.html", title, f"{found.texts} held-out texts.", sections)


def _with_intervals(row: dict[str, Any]) -> dict[str, str]:
    ends = row["interval"]
    return {
        "name": row["name"],
        **{m: f"{v:+.3f} [{ends[m][0]:+.3f}, {ends[m][1]:+.3f}]" for m, v in row["metrics"].items()},
    }


def _flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": row["name"], **row["metrics"]} for row in rows]
