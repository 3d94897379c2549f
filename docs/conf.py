"""Settings of the documentation; `make docs` builds it into build/docs."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "openmm-bg"
author = copyright = "openmm_bg developers"
version = release = installed_version("openmm-bg")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["demo_figures.md"]  # a part of the tutorial
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # numpydoc's sections say the types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

default_role = "code"  # single backticks in docstrings

html_theme = "pydata_sphinx_theme"
html_title = "openmm-bg"
html_sidebars = {"**": []}  # all pages are in the header
html_show_sourcelink = False
html_theme_options = {"show_prev_next": True, "navigation_with_keys": False}
