"""Sphinx's settings. tools/docs_build.py lays the sources out and calls Sphinx; nothing here asks another host."""

from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE.parent / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

project = settings["title"]
author = settings["author"]
version = release = settings["version"]
copyright = f"{author}; GPL-2.0-or-later"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton", "docs_sphinx"]
exclude_patterns = ["notebooks", "tour/contents.md"]
root_doc = "index"

# Outputs are those which are committed, and `make test` knows them to be what the notebooks print.
nb_execution_mode = "off"
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
mathjax_path = "vendor/tex-svg.js"
nb_ipywidgets_js = {
    "vendor/require.js": {},
    "widgets.js": {},
    "vendor/embed-amd.js": {},
}

autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True, "member-order": "bysource"}
autoclass_content = "both"
autodoc_preserve_defaults = True  # as they are written: a value may be a path of the machine which builds this
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 76
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True
viewcode_follow_imported_members = False  # each name is documented where it is defined
modindex_common_prefix = ["lguest_nb."]

# What the page looks like; book.css has the rest. Furo writes these for day, for night, and for what the reader's
# system prefers.
DAY = {
    "font-stack": '"Plex Sans", system-ui, sans-serif',
    "font-stack--headings": '"Plex Sans", system-ui, sans-serif',
    "font-stack--monospace": '"Plex Mono", "Heads", monospace',
    "book-serif": '"Plex Serif", Georgia, serif',
    "code-font-size": "0.84rem",
    "sidebar-width": "17rem",
    "sidebar-caption-font-size": "0.72rem",
    "sidebar-item-font-size": "0.86rem",
    "toc-font-size": "0.8rem",
    "admonition-font-size": "0.95rem",
    "color-background-primary": "#fffdf8",
    "color-background-secondary": "#f6f3ec",
    "color-background-hover": "#efe9dc",
    "color-background-border": "#e4ddcd",
    "color-foreground-primary": "#26221c",
    "color-foreground-secondary": "#5f574a",
    "color-foreground-muted": "#6f6656",
    "color-foreground-border": "#b6ab96",
    "color-brand-primary": "#a83f10",
    "color-brand-content": "#a83f10",
    "color-brand-visited": "#7d3a5c",
    "color-inline-code-background": "#f3eee2",
    "color-highlighted-background": "#f7e6bd",
    "color-sidebar-background": "#f6f3ec",
    "color-sidebar-item-background--current": "#ece5d6",
    "color-sidebar-link-text": "#4a4338",
    "color-sidebar-link-text--top-level": "#4a4338",
    "color-api-background": "#f6f3ec",
    "color-api-background-hover": "#efe9dc",
    "color-api-name": "#8f3a12",
    "color-api-pre-name": "#6f6656",
    "color-api-paren": "#6f6656",
    "color-table-header-background": "#f3eee2",
    "color-table-border": "#e4ddcd",
    "color-card-border": "#e0d8c6",
    "color-card-background": "#fffdf8",
    "book-screen": "#14191b",
    "book-screen-text": "#d3decf",
    "book-screen-edge": "#14191b",
    "book-line": "#83765f",
    "book-box": "#f6f0e2",
    "book-accent-box": "#fbe7d3",
}
NIGHT = {
    "color-background-primary": "#16191b",
    "color-background-secondary": "#1b1f22",
    "color-background-hover": "#262b2f",
    "color-background-border": "#2e3438",
    "color-foreground-primary": "#ddd8cc",
    "color-foreground-secondary": "#aca594",
    "color-foreground-muted": "#9d9482",
    "color-foreground-border": "#6d6759",
    "color-brand-primary": "#f0a36b",
    "color-brand-content": "#f0a36b",
    "color-brand-visited": "#d59ab8",
    "color-inline-code-background": "#24292c",
    "color-highlighted-background": "#4a3d14",
    "color-sidebar-background": "#1b1f22",
    "color-sidebar-item-background--current": "#2a2f33",
    "color-sidebar-link-text": "#c9c3b5",
    "color-sidebar-link-text--top-level": "#c9c3b5",
    "color-api-background": "#1f2427",
    "color-api-background-hover": "#262b2f",
    "color-api-name": "#f0a36b",
    "color-api-pre-name": "#9d9482",
    "color-api-paren": "#9d9482",
    "color-table-header-background": "#24292c",
    "color-table-border": "#2e3438",
    "color-card-border": "#343a3f",
    "color-card-background": "#1b1f22",
    "book-screen": "#0c0f10",
    "book-screen-text": "#c9d6c6",
    "book-screen-edge": "#2e3438",
    "book-line": "#a59b86",
    "book-box": "#22272a",
    "book-accent-box": "#3a2a1d",
}

html_theme = "furo"
html_title = "lguest-nb"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["here.js"]
html_favicon = "_static/ring.svg"
html_theme_options = {
    "light_logo": "ring.svg",
    "dark_logo": "ring.svg",
    "light_css_variables": DAY,
    "dark_css_variables": NIGHT,
}
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None
pygments_style = "docs_sphinx.Day"
pygments_dark_style = "docs_sphinx.Night"
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_selector = "div.highlight-sh pre, div.cell_input pre, div.file pre"
