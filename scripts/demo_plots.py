"""Plots of the demo's page that no command draws by itself, from what the commands printed."""

from pathlib import Path
from typing import Any

from latentlab_shared.plots import COLOURS, new_figure, save_png


def _short(words: str, most: int = 34) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"


def reasons(answer: dict[str, Any], path: Path) -> Path:
    """A reader's ranking: what every read article gives to each place's score; it may be below zero."""
    items = answer["items"][::-1]
    read = list(dict.fromkeys(r["title"] for item in items for r in item["reasons"]))
    figure, (axis,) = new_figure(width=8.4, height=3.6)
    high = 0.8 / len(read)
    for number, title in enumerate(read):
        parts = [sum(r["contribution"] for r in item["reasons"] if r["title"] == title) for item in items]
        places = [row + 0.4 - high * (number + 0.5) for row in range(len(items))]
        axis.barh(places, parts, height=0.9 * high, color=COLOURS[number % len(COLOURS)], label=_short(title, 48))
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(items)), [f"{_short(i['title'])}  {i['score']:.2f}" for i in items], fontsize=9)
    axis.set_xlabel("what each article that was read gives to the score; the score is their sum")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", fontsize=9, frameon=False, title="because of")
    return save_png(figure, path)


def memory_rates(rows: list[dict[str, Any]], baseline: float, path: Path) -> Path:
    """Accuracy against the number of vectors that a sentence is kept as; the line is what the aspect alone tells."""
    figure, (axis,) = new_figure(width=5.6)
    sizes, found = [row["k"] for row in rows], [row["accuracy"] for row in rows]
    below = [row["accuracy"] - row["low"] for row in rows]
    above = [row["high"] - row["accuracy"] for row in rows]
    axis.errorbar(sizes, found, yerr=[below, above], marker="o", capsize=3, label="model, 95 % interval")
    axis.axhline(baseline, color=COLOURS[1], linestyle="--", label="the aspect alone")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xlabel("vectors a sentence is kept as")
    axis.set_ylabel("accuracy")
    axis.set_ylim(0, 1.04)
    axis.legend(frameon=False)
    return save_png(figure, path)


def first_token(measured: dict[int, dict[str, dict[str, Any]]], path: Path) -> Path:
    """Processor time to the first token against the length of the documents, read whole and compressed."""
    figure, (axis,) = new_figure(width=5.6)
    contexts = sorted(measured)
    ways = {"full": "all tokens", "k=8, cached": "8 tokens a vector", "k=32, cached": "32 tokens a vector"}
    for name, label in ways.items():
        times = [measured[context][name]["cpu_s"] for context in contexts]
        axis.plot(contexts, times, marker="o", label=label)
        axis.annotate(f" {times[-1]:.2f} s", (contexts[-1], times[-1]), fontsize=9, va="bottom")
    axis.set_xlabel("tokens of the documents")
    axis.set_ylabel("CPU seconds to the first token")
    axis.set_yscale("log")
    axis.set_ylim(None, 4 * measured[contexts[-1]]["full"]["cpu_s"])  # room for the legend
    axis.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axis.margins(x=0.14)
    axis.legend(frameon=False, loc="upper left")
    return save_png(figure, path)
