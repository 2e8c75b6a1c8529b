"""The table of a sweep: rows that are kept from one attempt to the next."""

import csv
import io as stdio
import json
from pathlib import Path
from typing import Any

from genkit import dist, io
from genkit.config import differences
from genkit.errors import InputError

Cell = dict[str, Any]  # option -> value
ROWS = ".genkit.json"  # the rows with the settings that they share


class Table:
    """The rows of table.csv, kept from one attempt to the next under the settings that they share."""

    def __init__(self, folder: Path, settings: dict[str, Any], fresh: bool) -> None:
        self.folder, self.settings = folder, settings
        self.rows: dict[str, Cell] = dist.on_main(lambda: self._claim(fresh))

    def _claim(self, fresh: bool) -> dict[str, Cell]:
        """The rows that the folder has already.

        Raises:
            InputError: they were made with other settings.
        """
        path = self.folder / ROWS
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"-o {self.folder} is a file; a sweep needs a folder")
        if fresh or not path.exists():
            return {}
        try:
            old = json.loads(path.read_text("utf-8"))
            rows = dict(old["rows"])
            known = {"over": list(json.loads(next(iter(rows)))) if rows else None, **old["settings"]}
            changed = differences(known, self.settings)
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is damaged; use --fresh or another -o") from None
        if changed:
            raise InputError(
                f"{self.folder}/ holds a table made with other settings ({'; '.join(changed)}); "
                "use --fresh or another -o"
            )
        return rows

    def find(self, cell: Cell) -> Cell | None:
        """The row of a cell."""
        return self.rows.get(json.dumps(cell))

    def add(self, cell: Cell, row: Cell) -> None:
        """Take a row in and write the files."""
        self.rows[json.dumps(cell)] = row
        dist.on_main(self._write)

    def _write(self) -> None:
        text = stdio.StringIO()
        table = csv.DictWriter(text, list(next(iter(self.rows.values()))), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows.values())
        io.write_text(self.folder / "table.csv", text.getvalue())
        io.write_text(self.folder / ROWS, json.dumps({"settings": self.settings, "rows": self.rows}))


def short(value: Any) -> str:
    """A value as it is printed in a row."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def line(row: Cell) -> str:
    """A row as a line of text, less what is unknown."""
    return ", ".join(f"{k} {short(v)}" for k, v in row.items() if v is not None)
