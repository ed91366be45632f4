"""Logs of a training run as CSV, for machines without a network: one file, one row per entry."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from latentlab_shared.errors import UserError
from latentlab_shared.files import disk_errors, write_text


class LocalLogger:
    """Appends rows to ``<folder>/<name>.csv``; the first row decides the columns.

    Args:
        folder: usually ``research_logs`` of a run folder.
        name: of the file.
    """

    def __init__(self, folder: Path, name: str = "train") -> None:
        self.path = Path(folder) / f"{name}.csv"

    def rows(self) -> list[dict[str, str]]:
        """What was logged so far."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def log(self, **values: float | int | str) -> None:
        """Append one row.

        Raises:
            UserError: if a column is new or missing.
        """
        columns = list(values)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.is_file()
            if not fresh:
                with self.path.open(encoding="utf-8", newline="") as file:
                    known = next(csv.reader(file), [])
                if known != columns:
                    raise UserError(f"the columns are {', '.join(known)}, not {', '.join(columns)}", self.path)
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if fresh:
                writer.writerow(columns)
            writer.writerow(list(values.values()))
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(text.getvalue())

    def rewind(self, column: str, last: float) -> None:
        """Drop the rows whose ``column`` is above ``last``: a resumed run writes them again."""
        rows = self.rows()
        if not rows:
            return
        kept = [row for row in rows if float(row[column]) <= last]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_text(self.path, text.getvalue())
