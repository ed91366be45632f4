"""What an evaluation looks like: three plots, and a page that shows sentences with their aspects coloured."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_absa.configs.schema import POLARITIES, AspectSentimentResult, Example
from latentlab_shared.metrics.classification import confusion_matrix, reliability_table
from latentlab_shared.plots import html_table, image, new_figure, save_png, write_page

_COLOURS = {"positive": "#009E73", "negative": "#D55E00", "neutral": "#0072B2"}
_SHOWN = 40

Results = Sequence[Sequence[AspectSentimentResult]]


def _pairs(examples: Sequence[Example], found: Results) -> list[tuple[str, AspectSentimentResult]]:
    return [
        (str(aspect.polarity), result)
        for example, each in zip(examples, found, strict=True)
        for aspect, result in zip(example.aspects, each, strict=True)
    ]


def confusion_plot(examples: Sequence[Example], found: Results, path: Path) -> Path:
    """Counts of labels and answers."""
    pairs = _pairs(examples, found)
    counts = confusion_matrix([p for p, _ in pairs], [str(r.polarity) for _, r in pairs], POLARITIES)
    figure, (axis,) = new_figure(width=4.4)
    axis.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for row in range(len(POLARITIES)):
        for column in range(len(POLARITIES)):
            share = counts[row, column] / max(1, counts[row].sum())
            axis.text(
                column, row, str(counts[row, column]), ha="center", va="center", color="w" if share > 0.5 else "k"
            )
    axis.set_xticks(range(3), POLARITIES)
    axis.set_yticks(range(3), POLARITIES)
    axis.set(xlabel="answer", ylabel="label", title="Answers of each label")
    axis.grid(visible=False)
    return save_png(figure, path)


def reliability_plot(examples: Sequence[Example], found: Results, path: Path, bins: int = 10) -> Path:
    """How often an answer of some confidence is right."""
    pairs = _pairs(examples, found)
    confidence = [result.confidence for _, result in pairs]
    rows = reliability_table(confidence, [int(label == r.polarity) for label, r in pairs], bins)
    figure, (axis,) = new_figure(width=4.4)
    axis.plot([0, 1], [0, 1], linestyle=":", color="#888888")
    axis.plot([r.probability for r in rows], [r.rate for r in rows], marker="o")
    axis.set(xlabel="confidence", ylabel="share right", title="Reliability", xlim=(0.3, 1), ylim=(0, 1))
    return save_png(figure, path)


def training_plot(metrics: Sequence[Mapping[str, Any]], schedule: Any, path: Path) -> Path:
    """Losses of the epochs, and the weights of the losses over the training."""
    figure, (left, right) = new_figure(columns=2)
    for name in ("rec", "ext", "reason", "absa", "distill", "mark"):
        values = [(row["step"], row[name]) for row in metrics if name in row]
        if any(value for _, value in values):  # a task that is not trained has no curve
            left.plot(*zip(*values, strict=True), marker="o", markersize=3, label=name)
    left.set(xlabel="epoch", ylabel="loss", title="Losses")
    left.locator_params(axis="x", integer=True)
    left.legend(frameon=False)
    at = np.linspace(0, 1, 101)
    weights = [schedule.weights(float(x)) for x in at]
    for name in ("alpha", "beta"):
        right.plot(at, [w[name] for w in weights], label=name)
    right.set(xlabel="share of training", title="Weights of the losses")
    right.legend(frameon=False)
    return save_png(figure, path)


def highlighted(text: str, results: Sequence[AspectSentimentResult], labels: Sequence[str | None] = ()) -> str:
    """A text as HTML, its aspects coloured by polarity; a wrong answer is underlined and names the label."""
    places = [
        (r.aspect.start, r.aspect.end, r, label)
        for r, label in zip(results, labels or [None] * len(results), strict=True)
    ]
    spans = sorted((p for p in places if p[0] is not None), key=lambda p: (p[0] or 0, p[1] or 0))
    at, pieces = 0, []
    for start, end, result, label in spans:
        if start is None or end is None or start < at:  # overlaps the one before
            continue
        wrong = label is not None and label != result.polarity
        name = result.polarity or "no answer"
        title = f"{name} {result.confidence:.2f}" + (f", labelled {label}" if wrong else "")
        style = f"background:{_COLOURS.get(name, '#888888')}33;border-radius:4px;padding:0 .2em"
        style += ";text-decoration:underline wavy #b42318" if wrong else ""
        pieces += [
            html.escape(text[at:start]),
            f'<span style="{style}" title="{html.escape(title)}">{html.escape(text[start:end])}</span>',
        ]
        at = end
    pieces.append(html.escape(text[at:]))
    rest = [r for r in results if r.aspect.start is None]
    listed = "".join(f" <small>{html.escape(r.aspect.term)}: {r.polarity or 'no answer'}</small>" for r in rest)
    return f"<p>{''.join(pieces)}{listed}</p>"


def write_report(
    folder: Path, results: Mapping[str, Any], examples: Sequence[Example], found: Results, model: Path
) -> Path:
    """Write ``plots/*.png`` and ``report.html``; returns the page."""
    from clara_absa.evaluation.run import settings_of
    from clara_absa.training.schedules import make_schedule
    from latentlab_shared.runs import RunFolder

    plots = folder / "plots"
    sections = [
        ("Answers", html_table(results["answers"]) + html_table(results["differences"])),
        (
            "Where it is right",
            html_table(results["groups"]) + image(confusion_plot(examples, found, plots / "confusion.png")),
        ),
        (
            "Confidence",
            image(reliability_plot(examples, found, plots / "reliability.png")) + html_table([results["calibration"]]),
        ),
    ]
    for name, key in (("Compression", "compression"), ("Writing from memory", "writing")):
        if key in results:
            sections.append((name, html_table([results[key]])))
    settings = settings_of(model)
    if settings is not None:
        path = training_plot(
            RunFolder.read(model).metrics(), make_schedule(settings.clara.loss), plots / "training.png"
        )
        sections.append(("Training", image(path)))
    key = " ".join(f'<span style="background:{c}33;padding:0 .3em">{p}</span>' for p, c in _COLOURS.items())
    shown = "".join(
        highlighted(example.text, each, [a.polarity for a in example.aspects])
        for example, each in list(zip(examples, found, strict=True))[:_SHOWN]
    )
    sections.append(
        (f"The first {min(_SHOWN, len(examples))} sentences", f"<p>{key}; wrong answers underlined</p>{shown}")
    )
    lead = f"{results['questions']} aspects of {results['sentences']} sentences, {results['part']}"
    return write_page(folder / "report.html", f"clara-absa: {model.name}", lead, sections)
