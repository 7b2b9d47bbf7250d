"""Markup from words and numbers: nothing that comes from outside stands in a page unescaped."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import NamedTuple

LONG = 16
"""Lines of a table from which on it scrolls in a box of its own."""

FEW = 5
"""Sentences or commands that are shown without a click."""

NONE = "\u2013"
"""What stands for a number that is not there."""


class Cell(NamedTuple):
    """A cell of a table: its markup, and what it is sorted by, None for the text itself."""

    markup: str
    value: float | str | None = None


def text(words: object) -> str:
    """Return words as markup that shows them as they are."""
    return html.escape(str(words))


def embedded(data: object) -> str:
    """Return data as JSON that no HTML parser can take for markup."""
    found = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        found = found.replace(sign, f"\\u{ord(sign):04x}")
    return found


def number(value: float | None, form: str = ".4f") -> str:
    """Return a number as people print it, with a minus as wide as a plus."""
    if value is None or value != value:
        return NONE
    shown = f"{value:{form}}"
    return shown.lstrip("+-") if not float(shown) else shown.replace("-", "\u2212")


def table(
    heads: Sequence[str | tuple[str, str]], rows: Sequence[tuple[str, Sequence[Cell]]]
) -> str:
    """Return a table that sorts by a click on a head, in a box that scrolls.

    heads: names, or with the order of the first click, ascending or descending.  rows: attributes of
    the row, cells; the first cell names the row.
    """
    found = []
    for head in heads:
        name, first = (head, "") if isinstance(head, str) else (head[0], f' data-first="{head[1]}"')
        kind = "" if first else " class=word"
        found.append(f"<th scope=col{kind}{first}><button type=button>{text(name)}</button></th>")
    body = []
    for attributes, cells in rows:
        some = []
        for i, cell in enumerate(cells):
            tag = (
                "th scope=row"
                if i == 0
                else "td"
                if not isinstance(heads[i], str)
                else "td class=word"
            )
            value = "" if cell.value is None else f' data-value="{text(cell.value)}"'
            some.append(f"<{tag}{value}>{cell.markup}</{tag.split(' ')[0]}>")
        body.append(f"<tr{attributes}>{''.join(some)}</tr>")
    tall = " tall" if len(rows) > LONG else ""
    return (
        f'<div class="box{tall}" tabindex=0 role=region aria-label="table"><table><thead><tr>{"".join(found)}'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def numeric(value: float | None, form: str = ".4f", more: str = "") -> Cell:
    """Return the cell of a number; more: markup behind it."""
    gone = value is None or value != value
    return Cell(number(value, form) + more, "" if gone else repr(value))


def folded(items: Sequence[str], around: str = "{}") -> str:
    """Return the first items, and the others behind a line that opens; around: what goes round both."""
    first, rest = items[:FEW], items[FEW:]
    more = f"<details><summary>{len(rest)} more</summary>{around.format(''.join(rest))}</details>"
    return around.format("".join(first)) + (more if rest else "")
