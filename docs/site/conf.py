"""The documentation site: scripts/docs copies the pages beside this file's index.md, and runs Sphinx on them."""

# ruff: noqa: INP001, ANN001, ANN201
import re

import chat_nest

project = "Chat Nest"
author = "The Chat Nest authors"
copyright = "The Chat Nest authors, MIT licence"
version = release = chat_nest.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["examples/**", "deploy/**"]
root_doc = "index"
html_theme = "furo"
html_title = f"Chat Nest {version}"
html_show_sphinx = False
html_copy_source = False

# Links between the pages, and to headings, are those that GitHub shows: a wrong one is a warning, which is an error.
myst_heading_anchors = 4
myst_enable_extensions = ["substitution"]

# Docstrings are plain sentences with names in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": False}
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True

ITEM = re.compile(r"\s*([-*] |:|\d+\. )")


def setup(app):
    app.connect("autodoc-process-docstring", to_restructured_text)


def to_restructured_text(_app, _what, _name, _object, _options, lines):
    """Mark the indented examples of a docstring as literal blocks, and end no word with a reference's underscore."""
    result, previous = [], ""
    for line in lines:
        if re.fullmatch(r"-{3,}", line) and previous:
            result[-1] = f"**{previous}**"
            continue
        indented, was_indented = line.startswith(" "), previous.startswith(" ")
        in_list = ITEM.match(previous) is not None or (indented and was_indented)
        if indented and previous and not in_list:
            result += ["", "::", ""]
        elif indented and not previous and result and not any(each.startswith(" ") for each in result[-3:]):
            result += ["::", ""]
        elif line and ((was_indented and not indented) or (ITEM.match(line) and previous and not ITEM.match(previous))):
            result.append("")
        result.append(line if indented else re.sub(r"(?<=\w)_(?![\w`])", r"\\_", line))
        previous = line
    lines[:] = result
