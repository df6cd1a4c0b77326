"""The page of a plan: whole, closed, escaped, and looked at in a real browser."""

import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest

from accelnet.planning.page import plan_page
from accelnet.planning.plan import plan
from tests.planning.conftest import make_experiment

VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def values():
    """A plan with a slice, a GPU that is too small, one of each family, and a name that nobody knows."""
    wide = make_experiment(name="<b>hostile & wide</b>")
    made = plan(wide, ["v5e:2x2", "h100", "cpu", "h1000"], compile=False, progress=False, budget_usd=5.0).to_dict()
    small = next(target for target in made["targets"] if target["name"] == "h100")
    small |= {
        "fits": False,
        "status": "does not fit",
        "reason": "<script>alert(1)</script>",
        "remedies": [
            {"change": "accumulation, 4 microbatches", "settings": {}, "total_bytes": 1 << 30, "slowdown": 1.07}
        ],
    }
    return made


class Balanced(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(values):
    page = plan_page(values)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert parser.links == []
    assert "http" not in page.replace("http-equiv", "")
    assert len(page) < 300_000
    for target in values["targets"]:
        assert target["name"] in page
    assert "<svg" in page


def test_what_comes_from_outside_is_escaped(values):
    page = plan_page(values)
    assert "<script" not in page
    assert "<b>hostile" not in page
    assert "&lt;b&gt;hostile &amp; wide&lt;/b&gt;" in page


def test_remedies_choice_and_failures_are_told(values):
    page = plan_page(values)
    assert "accumulation, 4 microbatches: 1.0 GiB, 1.07 times the time per example" in page
    assert "What to rent" in page
    assert "h1000" in page


def test_a_plan_of_failures_alone_is_a_page(values):
    failed = [target for target in values["targets"] if target["status"] == "failed"]
    page = plan_page(values | {"targets": failed, "scaling": [], "choice": None})
    assert "h1000" in page


def screenshot(path, page, width, *options):
    (path / "page.html").write_text(page)
    picture = path / "picture.png"
    picture.unlink(missing_ok=True)
    command = [
        shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={path / 'profile'}", f"--window-size={width},1400", *options,
    ]  # fmt: skip
    url = f"file://{path / 'page.html'}"
    subprocess.run([*command, f"--screenshot={picture}", url], check=True, capture_output=True, timeout=120)
    from matplotlib.image import imread

    return np.round(imread(picture)[..., :3] * 255).astype(int)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser: apt-get install chromium")
def test_a_browser_shows_it_in_light_and_dark_and_on_a_phone(values, tmp_path):
    page = plan_page(values)
    pictures = {}
    for mode, setting in (("dark", 0), ("light", 1)):
        picture = screenshot(tmp_path, page, 1200, f"--blink-settings=preferredColorScheme={setting}")
        colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        assert len(colors) > 50
        pictures[mode] = colors[counts.argmax()].mean()
    assert pictures["light"] > 200 > 60 > pictures["dark"]
    # The page says in its own title how wide it is laid out: wider than the window would be scrolled sideways.
    probe = "<script>document.title = 'width ' + document.documentElement.scrollWidth</script></body>"
    narrow = page.replace('<meta name="viewport"', '<meta name="x-viewport"').replace("</body>", probe)
    framed = (
        '<!doctype html><html><body style="margin:0"><iframe id="f" style="border:0;width:360px;height:1000px" '
        f'srcdoc="{html_attribute(narrow)}"></iframe><script>onload = () => {{ document.title = '
        "document.getElementById('f').contentDocument.title }</script></body></html>"
    )
    (tmp_path / "framed.html").write_text(framed)
    command = [
        shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'framed.html'}",
    ]  # fmt: skip
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"<title>width (\d+)</title>", dom)
    assert found is not None
    assert int(found[1]) <= 360


def html_attribute(text):
    return text.replace("&", "&amp;").replace('"', "&quot;")
