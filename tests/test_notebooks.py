"""The notebooks run from top to bottom, and what they show can be read in a browser, light and dark."""

import html
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.pages import needs_browser, shows

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def executed(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "strip the outputs before committing"
    for cell in notebook.cells:
        cell.source = cell.source.replace("epochs = 20", "epochs = 1")
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parents[1]}}
    ).execute()
    return notebook


def page(notebook):
    """Return the outputs of a notebook as a page, as Jupyter shows them: the richest form of each."""
    parts = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "text/html" in data:
            parts.append(data["text/html"])
        elif "image/png" in data:
            parts.append(f'<img style="max-width:100%" src="data:image/png;base64,{data["image/png"]}">')
        else:
            parts.append(f'<pre style="overflow:auto">{html.escape(data["text/plain"])}</pre>')
    style = ":root{color-scheme:light dark}@media(prefers-color-scheme:dark){body{background:#111;color:#eee}}"
    return f"<!doctype html><meta charset='utf-8'><style>{style}</style><body>{''.join(parts)}</body>"


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return executed(request.param)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the Jupyter client itself
def test_a_notebook_runs_from_top_to_bottom(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) or "<svg" in str(output.get("data")) for output in outputs)
    # What is written to standard error stands in a red box.
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@needs_browser
def test_what_a_notebook_shows_can_be_read(notebook, browser, tmp_path):
    shows(browser, page(notebook), tmp_path)
