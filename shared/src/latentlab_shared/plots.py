"""Plots as PNG, and HTML pages that need nothing else; matplotlib is imported when a plot is drawn."""

from __future__ import annotations

import base64
import html
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlab_shared.errors import NeedsExtra
from latentlab_shared.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito), strongest first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(columns: int = 1, rows: int = 1, width: float = 5.2, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure with ``rows * columns`` plain axes, drawn without a display."""
    try:
        from matplotlib.figure import Figure as NewFigure
    except ImportError as error:
        raise NeedsExtra("matplotlib", "plots") from error
    figure = NewFigure(figsize=(width * columns, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_prop_cycle(color=COLOURS)
    return figure, axes


def save_png(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write a figure as PNG, atomically."""
    with atomic_path(Path(path)) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as boxes; the font lacks the script
        figure.savefig(temporary, format="png", dpi=dpi)
    return Path(path)


def image(path: Path, caption: str = "") -> str:
    """A PNG as an HTML figure that carries its own bytes."""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def html_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Dictionaries as an HTML table; floats get three decimals, numbers stand right."""
    listed = list(rows)
    names = list(columns or (listed[0] if listed else []))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(_cell(row.get(name)) for name in names) + "</tr>" for row in listed)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return f"<td>{'–' if value is None else html.escape(str(value))}</td>"
    return f'<td class="n">{_number(value) if isinstance(value, float) else html.escape(str(value))}</td>'


def _number(value: float) -> str:
    """Three decimals; more where that would hide the value, fewer where they say nothing."""
    size = abs(value)
    return f"{value:.3f}" if size < 1000 and (size >= 5e-4 or value == 0) else f"{value:.3g}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #8881; }}
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2.5rem auto; padding: 0 1.2rem; }}
h1 {{ font-size: 1.7rem; margin-bottom: .2rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.4rem; }}
p.lead {{ opacity: .75; margin-top: 0; }} .wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .92rem; margin: 0 0 1.4rem; }}
th, td {{ padding: .32rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
figure {{ margin: 1rem 0; }} img {{ max-width: 100%; background: #fff; border-radius: 6px; }}
figcaption {{ font-size: .85rem; opacity: .7; }}
pre {{ background: var(--soft); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; white-space: pre-wrap; }}
</style></head><body><h1>{title}</h1><p class="lead">{lead}</p>
{body}
</body></html>
"""


def write_page(path: Path, title: str, lead: str, sections: Iterable[tuple[str, str]]) -> Path:
    """Write one self-contained HTML page; each section is a heading and HTML made by the functions above."""
    body = "\n".join(f"<section><h2>{html.escape(name)}</h2>{content}</section>" for name, content in sections)
    write_text(Path(path), _PAGE.format(title=html.escape(title), lead=html.escape(lead), body=body))
    return Path(path)
