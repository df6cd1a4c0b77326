"""The site is built without a warning, and asks nothing of the outside."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("myst_nb", reason="the extra docs is not installed")
ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_is_built_runs_its_notebooks_and_asks_nothing_of_the_outside(tmp_path):
    environment = {**os.environ, "DOCS_EXECUTE": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    options = ("-W", "--keep-going", "-q", "-b", "html")
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    asked = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=.(?:https?:)?//[^>]*>")
    for page in tmp_path.rglob("*.html"):
        found = [tag for tag in asked.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in tag]
        assert found == [], page
    text = (tmp_path / "tutorials" / "table.html").read_text(encoding="utf-8")
    assert "accuracy" in text and "95 %" in text  # outputs of the notebook


def test_links_of_the_readme_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"(?:\]\(|src=\"|srcset=\")([^)#\"]+)[)#\"]", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_readme_is_read_at_once():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
