"""The HTML of recommendations, and the pictures of a catalog."""

from html.parser import HTMLParser

import pyarrow as pa
import pytest

from polyrec.web.cards import item_html, list_html
from polyrec.web.covers import Covers
from polyrec.web.results import Prediction, Recommendation

HOSTILE = """"'><img src=x onerror=alert(1)><script>alert(1)</script>"""
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


class Tags(HTMLParser):
    """All tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_texts_of_a_catalog_are_no_html():
    """A catalog whose titles run scripts in the browser of whoever looks at it."""
    one = Recommendation(
        1, HOSTILE, HOSTILE, "new", HOSTILE, HOSTILE, [Prediction("like", 0.5, 0.5)], f"https://{HOSTILE}"
    )
    for html in (list_html([one], [HOSTILE], covers=True), item_html(HOSTILE, one.predictions)):
        read = Tags(html)
        assert HOSTILE in read.text
        assert {tag for tag, _ in read.tags} <= {"ol", "li", "div", "span", "p", "dl", "dt", "dd", "i", "img"}
        assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
        assert len([tag for tag, _ in read.tags if tag == "img"]) == (HOSTILE in read.text and "<ol" in html)


def test_reasons_and_changes_are_whole():
    """A reason that is cut off, a bar of the wrong length, a change that is not shown."""
    reason = "Because you liked " + ", ".join(f"“A long title {n}”" for n in range(40)) + "."
    predictions = [Prediction("like", 0.25, 0.25, 0.125), Prediction("kind", 3.0, None, 0.0)]
    read = Tags(list_html([Recommendation(1, 7, "Heat [7]", "↑ 2", "", reason, predictions)], ["Alien [8]"]))
    assert reason in read.text
    assert "0 new, 1 moved; gone: Alien [8]." in read.text
    assert "↑ 2" in read.text
    assert "+0.125" in read.text
    assert "0.000" not in read.text  # no change is not shown as one
    assert [attributes["style"] for tag, attributes in read.tags if tag == "i"] == [
        "width:25.0%"
    ]  # classes have no bar
    assert "whole catalog" in list_html([], [])


@pytest.mark.parametrize(
    ("values", "source"),
    [
        ([PNG, None], "data:image/png;base64,"),
        ([b"<svg onload=alert(1)>", None], None),
        (["data:image/webp;base64,AAAA"], "data:image/webp;base64,AAAA"),
        (["data:text/html;base64,AAAA"], None),
        (["javascript:alert(1)"], None),
        (["covers/1.jpg"], None),
        (["file:///etc/passwd"], None),
        (["https://pictures.example/1.jpg"], None),  # not without being asked for
    ],
)
def test_only_pictures_are_covers(values, source):
    """A catalog that makes a browser load from elsewhere unasked, run a script or read a file."""
    covers = Covers(pa.table({"item_id": range(len(values)), "cover": values}))
    assert covers.shown is (source is not None)
    found = covers.source(0)
    assert found == source if source is None else found.startswith(source)
    assert Covers(pa.table({"recovery": values})).column is None  # "cover" is a word of its own
    by_address = Covers(pa.table({"poster_url": ["https://pictures.example/1.jpg"]}), addresses=True)
    assert by_address.source(0) == "https://pictures.example/1.jpg"
