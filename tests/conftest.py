"""A real browser, for the tests of pages; imports that tests share."""

import html
import os
import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

from accelnet.training import workdir
from tests.forks import Forks

# A process of pytest-xdist has the width of the terminal that started it; tests that want one say which.
os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="module")
def no_pictures():
    """Let runs leave out their picture, which takes longer than all else that they do after a training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir, "to_png", lambda figure: b"")
        patch.setattr(workdir, "curves", lambda *args: None)
        yield


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Return what starts scripts as processes that have imported what they need already."""
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


class Shown(NamedTuple):
    """What a browser has made of a page."""

    dom: str

    @property
    def title(self):
        return html.unescape(re.search(r"<title>(.*?)</title>", self.dom)[1])


# A page tells in its title how wide it is laid out, what stands outside of it or of its figure, what it has fetched.
_TOLD = """<script>onload = () => {
  const inside = (box, frame) => box.left >= frame.left - 1 && box.right <= frame.right + 1
  const whole = document.documentElement.getBoundingClientRect()
  const outside = [...document.querySelectorAll('body *')].filter(one => {
    const box = one.getBoundingClientRect()
    if (!box.width || one.closest('.scroll table, script, style')) return false
    const figure = one.closest('figure')?.getBoundingClientRect()
    return !inside(box, whole) || (figure && !inside(box, figure))
  }).map(one => `, ${one.tagName} "${one.textContent.slice(0, 20)}" outside`)
  const names = performance.getEntriesByType('resource').map(one => one.name).filter(name => !name.startsWith('data:'))
  const wide = `${document.documentElement.scrollWidth} wide${outside.slice(0, 3).join('')}`
  document.title = `${wide}, asks for ${names.join() || 'nothing'}`
}</script></body>"""
_COLLECTED = """<script>onload = () => {
  document.title = [...document.querySelectorAll('iframe')].map(one => one.contentDocument.title).join('; ')
}</script>"""


@pytest.fixture
def browser(tmp_path):
    """Return a function that opens the page in frames so wide, in a scheme, with more of a browser's options."""
    chromium = shutil.which("chromium")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
    ]  # fmt: skip

    def run(text, widths, dark, *options):
        # A browser's window has a least width; a frame has none. The page itself allows no scripts: this copy has to.
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        text = html.escape(text.replace("<details>", "<details open>").replace("</body>", _TOLD))
        frames = [
            f'<iframe style="float:left;border:0;width:{width}px;height:2000px" srcdoc="{text}"></iframe>'
            for width in widths
        ]
        path = tmp_path / "framed.html"
        path.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{"".join(frames)}{_COLLECTED}')
        how = [f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--window-size={sum(widths)},2000"]
        called = [*command, *how, *options, f"file://{path}"]
        made = subprocess.run(called, check=True, capture_output=True, text=True, timeout=120)
        return Shown(made.stdout)

    return run
