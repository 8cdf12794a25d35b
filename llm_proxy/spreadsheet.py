"""Rows as CSV (RFC 4180) that a spreadsheet shows, but does not run."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

# What a cell begins with that spreadsheets take for a formula, the full-width forms included.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def as_csv(names: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A head with the names, then the rows; lines end with CR LF, None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows([_cell(row[name]) for name in names] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    # An apostrophe in front makes it a text.
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
