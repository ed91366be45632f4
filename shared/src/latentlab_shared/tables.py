"""README tables written from ``results/*.json``, so that no figure is typed by hand.

A README marks a place with a comment that names the file and the columns to show::

    <!-- table: results/folds.json columns: name, r2, cosine -->
    ...generated, never edited...
    <!-- end table -->

``results/bench.json#targets`` shows the file's ``results`` that have a target instead of its rows. A single figure in a
sentence or in a cell names its file, row and metric::

    <!-- figure: results/folds.json; refiner; r2 -->0.548<!-- end figure -->
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentlab_shared.errors import UserError
from latentlab_shared.files import read_json

_BLOCK = re.compile(
    r"(?P<open><!-- table: (?P<file>\S+)(?: columns: (?P<columns>[^>]*?))? -->\n)"
    r"(?P<body>.*?)(?P<close><!-- end table -->)",
    re.DOTALL,
)


_FIGURE = re.compile(r"(<!-- figure: ([^;>]+); ([^;>]+); ([^;>]+) -->)[^<]*(<!-- end figure -->)")


def fill(readme: Path) -> str:
    """The README's text with every marked table and figure written anew."""
    text = readme.read_text(encoding="utf-8")
    text = _BLOCK.sub(lambda found: _block(found, readme), text)
    return _FIGURE.sub(lambda found: f"{found[1]}{_figure(readme, *found.group(2, 3, 4))}{found[5]}", text)


def _figure(readme: Path, file: str, row: str, metric: str) -> str:
    path = readme.parent / file
    rows = {r["name"]: r.get("metrics", {}) for r in _checked(read_json(path), path)["rows"]}
    value = rows.get(row, {}).get(metric)
    if not isinstance(value, (int, float)):
        raise UserError(f"{path} has no number {metric!r} in a row {row!r}", readme, f"Rows: {', '.join(rows)}")
    return _number(value)


def _block(found: re.Match[str], readme: Path) -> str:
    name, _, part = found["file"].partition("#")
    path = readme.parent / name
    table = _checked(read_json(path), path)
    if part == "targets":
        table["rows"] = [{"name": r["name"], "metrics": r} for r in table["results"] if r["target"]]
    elif part:
        raise UserError(f"#{part} is no part of a results file", str(readme), "Use #targets, or leave it out")
    wanted = [c.strip() for c in found["columns"].split(",")] if found["columns"] else None
    return f"{found['open']}{render(table, wanted, str(path))}{found['close']}"


_FACTS = ("command", "data", "commit", "date", "machine")


def _checked(table: Any, path: Path) -> dict[str, Any]:
    """A results file that has what a table shows, or a ``UserError`` that names what it lacks."""
    if not isinstance(table, dict):
        raise UserError("is no results file (a JSON object)", path)
    if missing := [name for name in _FACTS if not isinstance(table.get(name), str)]:
        raise UserError(f"is no results file: {missing[0]} is missing or no text", path)
    rows = table.get("rows", table.get("results"))
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows
    ):
        raise UserError("is no results file: its rows are no list of objects with a name", path)
    for row in rows:
        for key in ("metrics", "interval"):
            if not isinstance(row.get(key, {}), dict):
                raise UserError(f"is no results file: {key} of {row['name']!r} is no object", path)
        if any(not _is_interval(pair) for pair in row.get("interval", {}).values()):
            raise UserError(f"is no results file: an interval of {row['name']!r} is no pair of numbers", path)
    if not isinstance(table.get("seeds", []), list):
        raise UserError("is no results file: seeds is no list", path)
    return table


def _is_interval(pair: Any) -> bool:
    numbers = isinstance(pair, list) and all(isinstance(value, (int, float, type(None))) for value in pair)
    return not pair or numbers and len(pair) == 2


def render(table: dict[str, Any], columns: Sequence[str] | None = None, where: str = "table") -> str:
    """Markdown of one results file: the rows, and below them the command, data, commit, date, machine and seeds."""
    rows = [{"name": row["name"], **row.get("metrics", {})} for row in table["rows"]]
    intervals = [row.get("interval", {}) for row in table["rows"]]
    names = list(columns) if columns else list(dict.fromkeys(key for row in rows for key in row))
    for name in names:
        if not any(name in row for row in rows):
            raise UserError(f"no row has the column {name!r}", where, f"Columns: {', '.join(rows[0]) if rows else ''}")
    numeric = {n for n in names if all(isinstance(r.get(n), (int, float, type(None))) for r in rows)}
    lines = ["| " + " | ".join(names) + " |", "|" + "|".join("---:" if n in numeric else "---" for n in names) + "|"]
    for row, interval in zip(rows, intervals, strict=True):
        lines.append("| " + " | ".join(_cell(row.get(n), interval.get(n)) for n in names) + " |")
    seeds = ", ".join(map(str, table.get("seeds", [])))
    facts = [
        f"`{table['command']}`",
        f"data: {table['data']}",
        f"commit {table['commit']}",
        table["date"],
        table["machine"],
    ]
    if seeds:
        facts.append(f"seeds {seeds}")
    return "\n".join(lines) + "\n\n" + " · ".join(facts) + "\n"


def _cell(value: Any, interval: Sequence[float] | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = _number(value) if isinstance(value, (int, float)) else str(value)
    return f"{text} [{_number(interval[0])}, {_number(interval[1])}]" if interval and None not in interval else text


def _number(value: float) -> str:
    """Three decimals below 10, fewer above: enough to compare, not more than was measured."""
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"
