from __future__ import annotations

from model.report_pages.markup import Markup, joined, slug, tag


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    name, escaped = "<img src=x onerror='hit()'>", "&lt;img src=x onerror=&#x27;hit()&#x27;&gt;"
    assert tag("td", name, title=name) == f'<td title="{escaped}">{escaped}</td>'
    assert joined("a < b", tag("br")) == "a &lt; b<br/>"
    assert tag("p", Markup("<b>bold</b>")) == "<p><b>bold</b></p>"


def test_attributes_get_dashes_and_those_without_a_value_stay_out() -> None:
    element = tag("td", "1", class_="number", aria_label="one", hidden=True, id=None, open=False)
    assert element == '<td class="number" aria-label="one" hidden>1</td>'


def test_an_id_is_made_of_letters_digits_and_dashes() -> None:
    assert slug("IoU of each class (%)") == "iou-of-each-class"
