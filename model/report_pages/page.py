"""A report as one HTML file: it needs no other file, no network and no server.

Browsers load no script module from a second file for a page that was opened from a disk, so style and script
stand in the page. Its Content-Security-Policy names both by their digests: nothing else in the page can run,
whatever the names of classes and files hold.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from model.report_pages.markup import Markup, joined, slug, tag

_DIGEST_DIGITS = 16


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        body: its content.
    """

    title: str
    body: Markup


def render_page(
    kind: str,
    title: str,
    head: Markup,
    sections: Sequence[Section],
    *,
    with_script: bool = False,
    refresh_ms: int | None = None,
) -> str:
    """Return a page.

    Args:
        kind: kind of the report; stands above its title.
        title: of the window and the page.
        head: content between the title and the first section.
        sections: parts of the page, in order.
        with_script: whether curves are read under the pointer. Without its script the page shows the last
            values.
        refresh_ms: asks the server of the page for its news so often; None = the page stays as it is.
    """
    style, script = _asset("report.css"), _asset("report.js") if with_script else ""
    top = tag("section", tag("h1", title), head, id="head", data_part=_digest(head))
    content = joined(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script, refresh_ms)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    status = tag("p", "", id="live", class_="status", role="status") if refresh_ms else Markup("")
    main = tag("main", top, *map(_section, sections), status, data_refresh_ms=refresh_ms)
    header = tag("header", tag("strong", f"Segmentation: {kind}"))
    body = tag("body", header, main, tag("script", Markup(script)) if script else Markup(""))
    return f"<!doctype html>\n{tag('html', tag('head', content), body, lang='en')}\n"


def facts(rows: Mapping[str, str | Markup]) -> Markup:
    """Return names and values as a list."""
    pairs = (joined(tag("dt", name), tag("dd", value)) for name, value in rows.items())
    return tag("dl", *pairs, class_="figures")


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, class_: str | None = None
) -> Markup:
    """Return a table that scrolls where the screen is narrow.

    Args:
        heads: of the columns; may be empty.
        rows: cells; the first one of a row is its head. A finished ``<td>`` stays as it is.
        label: the name of the table for screen readers.
        class_: of the table.
    """
    columns = (tag("th", one, scope="col") if one else tag("td", "") for one in heads)
    head = tag("thead", tag("tr", *columns))
    body = tag("tbody", *(tag("tr", tag("th", row[0], scope="row"), *map(_cell, row[1:])) for row in rows))
    return wide(tag("table", head, body, class_=class_), label=label)


def wide(content: Markup, *, label: str) -> Markup:
    """Return content that scrolls sideways, by keyboard too, where the screen is narrower."""
    return tag("div", content, class_="wide", tabindex=0, role="region", aria_label=label)


def nested(values: Mapping[str, object]) -> Markup:
    """Return nested values as lists: the plain ones first, then one list below the name of each group."""
    plain = {key: plain_text(value) for key, value in values.items() if not isinstance(value, Mapping)}
    groups = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    inner = (tag("div", tag("h3", key), nested(value), class_="group") for key, value in groups.items())
    return joined(facts(plain) if plain else Markup(""), tag("div", *inner, class_="groups"))


def plain_text(value: object) -> str:
    """Write a value of a configuration: lists without brackets, ``empty`` for an empty text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return str(value) or "empty"


def folded(summary: str, content: Markup, *, id_: str) -> Markup:
    """Return content behind a line that opens it."""
    return tag("details", tag("summary", summary), content, id=id_)


def percent(share: float | None, digits: int = 2) -> str:
    """Write a share of 1 as percents, or ``none``."""
    return "none" if share is None else f"{100 * share:.{digits}f} %"


def counted(count: int, thing: str) -> str:
    """Write a number of things: ``1 picture``, ``1,234 pictures``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def color_code(color: tuple[int, int, int]) -> str:
    """Write an RGB colour, 0..255, as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def swatch(color: tuple[int, int, int]) -> Markup:
    """Return a small square of a colour. A ``style`` attribute would be against the page's policy."""
    square = tag("rect", width=16, height=16, fill=color_code(color))
    return tag("svg", square, class_="swatch", viewbox="0 0 16 16", aria_hidden="true")


def legend(names: Sequence[str], colors: Sequence[tuple[int, int, int]]) -> Markup:
    """Return the classes of label maps with their colours."""
    known = [(name, swatch(color)) for name, color in zip(names, colors, strict=True)]
    items = (tag("li", square, name) for name, square in [*known, ("not labelled", swatch((0, 0, 0)))])
    return tag("ul", *items, class_="classes")


def _cell(content: str) -> Markup:
    if isinstance(content, Markup) and content.startswith("<td"):
        return content
    return tag("td", content)


def _section(section: Section) -> Markup:
    heading = tag("h2", section.title)
    return tag("section", heading, section.body, id=slug(section.title), data_part=_digest(section.body))


def _policy(style: str, script: str, refresh_ms: int | None) -> str:
    own = " 'self'" if refresh_ms else ""
    rules = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script) if script else "'none'",
        "img-src": f"data:{own}",
        "connect-src": own.strip() or "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_DIGITS]


def _asset(name: str) -> str:
    return (files("model.report_pages") / name).read_text("utf-8")
