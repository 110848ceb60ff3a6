"""Sphinx configuration; build with `sphinx-build -W docs site`."""

import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent / "src")]

project = "litchar"
author = "the litchar maintainers"
html_title = "litchar"
html_theme = "furo"
html_show_copyright = False
smartquotes = False  # "" is a value
exclude_patterns = ["_extensions", "reference/modules.rst"]

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "configuration",
]
myst_heading_anchors = 3  # `page.md#a-heading`, as on GitHub
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["misc.highlighting_failure"]

# One page per module of the package, from its docstrings.
apidoc_modules = [
    {
        "path": "../src/litchar",
        "destination": "reference",
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
default_role = "code"  # docstrings write `names` as Markdown does
autodoc_mock_imports = [] if find_spec("triton") else ["triton"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
