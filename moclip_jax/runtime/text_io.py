"""Names of files in and out of the commands: any bytes, JSON, CSV."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# A spreadsheet takes a cell that begins with one of these for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def file_names(lines: Iterable[str | bytes]) -> Iterator[str]:
    """Read file names, one a line; empty lines are skipped. In bytes they need not be UTF-8.

    A name may begin or end with spaces: they are stripped only where no file has the name as it is.
    """
    for line in lines:
        name = os.fsdecode(line).rstrip("\r\n")
        if not os.path.lexists(name):
            name = name.strip()
        if name:
            yield name


def printable(text: str) -> str:
    r"""Return a text with `\xNN` for each byte of a file's name that is not UTF-8.

    Args:
      text: May hold such bytes as Python keeps them in names, as lone surrogates.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def json_line(value: Any) -> str:
    r"""Return a value as a line of JSON that is valid UTF-8 whatever the names of files are.

    Args:
      value: Nested JSON values; in strings, bytes that are not UTF-8 become `\xNN` (`printable`).
    """
    return json.dumps(_printable_tree(value))


def csv_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table's row whose texts no spreadsheet takes for formulas.

    A text that begins with `=`, `+`, `-`, `@`, a tab or a carriage return gets a `'` before it,
    which spreadsheets do not show; numbers stay.
    """
    return {name: _cell(value) for name, value in row.items()}


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


def _printable_tree(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_printable_tree(key): _printable_tree(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_printable_tree(item) for item in value]
    return value
