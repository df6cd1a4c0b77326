"""How the site is built: `bash scripts/docs.sh`."""

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "accelnet"
author = "the accelnet authors"
copyright = "the accelnet authors"  # noqa: A001, Sphinx's name
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"accelnet {version}"
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False

# Notebooks are run where DOCS_EXECUTE is 1; an exception in one ends the build.
nb_execution_mode = "force" if os.environ.get("DOCS_EXECUTE") == "1" else "off"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they come from outside
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Public names stand in two modules, the one of the user and the one of the file: either is right.
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "alphabetical"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
