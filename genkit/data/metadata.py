"""`metadata.csv` and `metadata.jsonl`: captions (`text`) and labels of the images in the same folder."""

import csv
import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import InputError
from .store import Store, escapes


class Row(NamedTuple):
    """One image of the table; its name is relative to the store's root."""

    name: str
    caption: str | None
    label: str | None
    where: str  # the table and its line, for a message


def read_metadata(store: Store, table: str) -> list[Row]:
    """The rows of a metadata file, checked; whether the images exist is found when they are opened.

    Raises:
        InputError: naming the file, the line and what is wrong with it.
    """
    where = f"{store.path}/{table}"
    try:
        with store.open(table) as stream:
            text = stream.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {where} as UTF-8 text: {error}") from None
    records = list(csv_records(text, where) if table.endswith(".csv") else json_records(text, where))
    if not records:
        raise InputError(f"{where} has no rows; delete it, or list the images in it")
    folder = posixpath.dirname(table)
    rows = [row(record, folder, f"{where}, line {line}") for line, record in records]
    check(rows, where)
    return rows


def csv_records(text: str, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, values by column) of each row."""
    reader = csv.DictReader(text.splitlines(keepends=True))
    try:
        columns = reader.fieldnames or []
        if "file_name" not in columns:
            raise InputError(f"{where} has no file_name column (its columns: {', '.join(columns) or 'none'})")
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise InputError(f"{where}, line {reader.line_num}: {error}") from None


def json_records(text: str, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, values by key) of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise InputError(f'{where}, line {number} must be an object such as {{"file_name": "0.png"}}')
        yield number, record


def row(record: Mapping[str, Any], folder: str, where: str) -> Row:
    """The Row of one record of a table in `folder`."""
    name, text, label = record.get("file_name"), record.get("text"), record.get("label")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}: file_name is missing")
    if escapes(name):
        raise InputError(f"{where}: {name!r} lies outside the folder; names must be relative to it")
    if text is not None and not isinstance(text, str):
        raise InputError(f"{where}: text must be a string, got {text!r}")
    if isinstance(label, list | dict | float):
        raise InputError(f"{where}: label must be a string or a whole number, got {label!r}")
    path = posixpath.normpath(posixpath.join(folder, name))
    return Row(path, text, None if label is None else str(label), where)


def check(rows: list[Row], where: str) -> None:
    """Raises:
    InputError: for an image listed twice, or labels on some rows only.
    """
    seen = set()
    for item in rows:
        if item.name in seen:
            raise InputError(f"{where} lists {item.name} twice; keep one row for each image")
        seen.add(item.name)
    bare = [item.name for item in rows if not item.label]
    if bare and len(bare) < len(rows):
        raise InputError(f"{where} gives no label for {bare[0]}; label every row or none")
