"""HTML in which text stays text: ``tag`` escapes every string that is no ``Markup``."""

from __future__ import annotations

import re
from html import escape

_VOID = frozenset({"br", "img", "link", "meta", "rect", "line", "path"})
"""Elements without content; those of SVG are written as ``<rect/>``."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: ``Markup``, or text, which is escaped.
        attributes: their names with ``_`` for ``-`` and without a ``_`` at the end; True = without a value;
            None or False = absent.
    """
    told = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{told}/>")
    return Markup(f"<{name}{told}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """Return markup and text, which is escaped, one after the other."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def slug(title: str) -> str:
    """Return a title as the id of an element: ``loss, mean`` -> ``loss-mean``."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    # SVG knows one attribute with a capital letter that is used here.
    name = "viewBox" if name == "viewbox" else name
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
