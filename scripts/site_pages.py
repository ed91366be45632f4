"""Write the parts of the site that the code decides: the picture of the layers, and the list of commands.

The list is made anew for each build of the site; the picture is committed, and --check fails when it is out of date.
"""

import importlib
import sys
import tomllib
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SVG = ROOT / "docs" / "architecture.svg"
COMMANDS = ROOT / "docs" / "reference" / "commands.md"
COMMON = {"--json", "--quiet", "--verbose", "--help"}
NOTES = {
    "rsr_net": "torch",
    "seq2seq_keras": "Keras, TensorFlow",
    "clara_absa": "transformers, peft",
    "nrms": "torch, SQL",
    "refrag": "transformers, Hydra",
}
SHARED = "embedding cache · encoders · metrics · run folders · command line · serving · files"
BLUE, GREEN, INK, SOFT = "#0072B2", "#009E73", "#1c2733", "#eef3f8"


def layers() -> dict[str, list[list[str]]]:
    """The rooms of each package from the top down, as the contracts in pyproject.toml have them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    found = {c["containers"][0]: c["layers"] for c in contracts if c["type"] == "layers"}
    return {name: [[room.strip() for room in row.split("|")] for row in found[name]] for name in NOTES}


def text(x: float, y: float, words: str, size: float = 13, extra: str = "") -> str:
    """One centred line of an SVG."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="middle" {extra}>{escape(words)}</text>'


def picture() -> str:
    """The packages side by side, the rooms of each above those they may import, shared under all."""
    rooms = layers()
    width, wide, high, gap, top = 1060, 190, 26, 6, 108
    deepest = max(len(rows) for rows in rooms.values())
    floor = top + deepest * (high + gap)
    parts = [
        text(width / 2, 34, "Latent Text Lab", 20, 'font-weight="600"'),
        text(width / 2, 56, "a room imports only from rooms below it; packages never import each other"),
    ]
    for column, (name, rows) in enumerate(rooms.items()):
        left = 20 + column * (wide + 17.5)
        middle = left + wide / 2
        parts += [
            text(middle, 82, name, 15, f'font-weight="600" fill="{BLUE}"'),
            text(middle, 99, NOTES[name], 11, 'fill="#5a6b7b"'),
        ]
        begin = floor - len(rows) * (high + gap)
        for number, row in enumerate(rows):
            y = begin + number * (high + gap)
            parts.append(
                f'<rect x="{left:g}" y="{y:g}" width="{wide}" height="{high}" rx="5" fill="{SOFT}" stroke="{BLUE}" '
                f'stroke-opacity=".35"/>'
            )
            parts.append(text(middle, y + 17.5, " · ".join(row), 12 if len(row) < 3 else 9.5))
        parts.append(f'<path d="M{middle:g} {floor:g} v14" stroke="{GREEN}" stroke-width="2" marker-end="url(#a)"/>')
    y = floor + 22
    parts += [
        f'<rect x="20" y="{y}" width="{width - 40}" height="50" rx="7" fill="#e6f5ef" stroke="{GREEN}"/>',
        text(width / 2, y + 21, "latentlab_shared", 15, f'font-weight="600" fill="{GREEN}"'),
        text(width / 2, y + 40, SHARED, 12),
    ]
    height = y + 70
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="system-ui, '
        f'sans-serif" fill="{INK}"><title>The rooms of the five packages, on the shared one</title>'
        f'<defs><marker id="a" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="5" markerHeight="5" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{GREEN}"/></marker></defs>'
        f'<rect width="{width}" height="{height}" rx="10" fill="#fff"/>' + "\n".join(parts) + "</svg>\n"
    )


def commands() -> str:
    """Every verb of every command with its flags, from the programs themselves."""
    import typer.main

    lines = [
        "# The command line",
        "",
        "Every verb takes `--json`, `-q`, `-v` and `--help`. stdout is the result, stderr the log. Exit codes: 0 done,",
        "1 failed, 2 wrong input, 130 interrupted. This page is written from the programs.",
        "",
    ]
    for folder in [ROOT / "packages" / name for name in NOTES] + [ROOT / "shared"]:
        scripts = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
        for name, target in scripts.items():
            app = importlib.import_module(target.split(":")[0]).app
            lines += [f"## {name}", "", f"{app.info.help}", ""]
            verbs: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
            for verb, command in verbs.items():
                told = " ".join((command.help or "").split("\n\n")[0].split())
                lines += [f"### {name} {verb}", "", told, ""]
                rows = [row for p in command.params if (row := _flag(p))]
                if rows:
                    lines += ["| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _flag(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"| `{parameter.name.upper()}` | {_cell(parameter.help)} |"
    names = sorted(parameter.opts, key=len)
    if set(names) & COMMON:
        return ""
    return f"| `{'`, `'.join(names)}` | {_cell(parameter.help)} |"


def _cell(words: str | None) -> str:
    return " ".join((words or "").split()).replace("|", "\\|")


def main() -> int:
    """Write or check the files; the exit code."""
    if "--check" in sys.argv[1:]:
        stale = not SVG.is_file() or SVG.read_text(encoding="utf-8") != picture()
        if stale:
            print(f"{SVG.relative_to(ROOT)} differs from pyproject.toml. Run: make pages")
        return int(stale)
    for path, make in ((SVG, picture), (COMMANDS, commands)):
        path.write_text(make(), encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
