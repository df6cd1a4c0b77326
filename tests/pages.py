"""What the tests of all pages ask: whether they are whole and closed, and what a real browser makes of them."""

import html.parser
import re
import shutil

import numpy as np
import pytest

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium")


class Page(html.parser.HTMLParser):
    """Checks that what is opened is closed, and keeps the elements with their attributes and their text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] != "style" else ""

    def all(self, tag, kind=None):
        return [a for name, a in self.elements if name == tag and kind in (None, a.get("class"))]


def needs_nothing(text):
    """Say that a page is whole, and nothing in it would be fetched from elsewhere; return it parsed."""
    page = Page(text)
    sources = [a[key] for _, a in page.elements for key in ("src", "href", "srcset") if key in a]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert all("<title>" in picture and "<desc>" in picture for picture in pictures)
    return page


WIDTHS = (1100, 500, 360)  # a screen, half of it, a phone


def shows(browser, text, tmp_path, colors=()):
    """Say that a browser shows all of a page in light and dark, wide and narrow, and fetches nothing for it."""
    from matplotlib.image import imread

    for dark in (False, True):
        picture = tmp_path / f"{'dark' if dark else 'light'}.png"
        browser(text, WIDTHS, dark, f"--screenshot={picture}")
        pixels = np.round(imread(picture)[..., :3] * 255).astype(int) @ (1 << 16, 1 << 8, 1)
        for end, width in zip(np.cumsum(WIDTHS), WIDTHS, strict=True):
            found, counts = np.unique(pixels[:, end - width : end], return_counts=True)
            assert len(found) > 50  # not blank
            for red, green, blue in colors:
                assert (red << 16 | green << 8 | blue) in found
            background = np.mean([found[counts.argmax()] >> shift & 255 for shift in (16, 8, 0)])
            assert background < 60 if dark else background > 200
    told = "; ".join(f"{width} wide, asks for nothing" for width in WIDTHS)
    assert browser(text, WIDTHS, False, "--dump-dom").title == told
