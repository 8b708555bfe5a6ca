"""How the manual is built: `nox -s docs`."""

from perdure import __version__

project = "perdure"
author = "The perdure authors"
copyright = "2026, the perdure authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
myst_heading_anchors = 3
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
exclude_patterns = ["_build"]
# The tables of results are wide, and monospaced text is what they are.
suppress_warnings = ["myst.xref_missing", "ref.python"]
