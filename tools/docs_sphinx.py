"""What Sphinx has to know about this project: docments, names in prose, drawings, and how code is coloured."""

import gc
import html
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from docs_comments import Told, comments_of
from docs_generate import modules, promised, rst
from docutils import nodes
from docutils.parsers.rst import directives
from pygments.style import Style
from pygments.token import Comment, Error, Generic, Keyword, Literal, Name, Number, Operator, String, Token
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.adapters.toctree import global_toctree_for_doc
from sphinx.search.en import SearchEnglish
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger
from sphinx.util.osutil import relative_uri

log = getLogger(__name__)
PACKAGE = "lguest_nb"
# A name in code type is a link if it can only be ours: with a capital, an underscore or a dot in it.
# `name`{.c} is one of lguest.c, and none.
TELLING = re.compile(r"[A-Z]|\w_\w|\.")
GARBAGE = 100_000  # objects that may be made before Python looks for those which nobody has any more
MERMAID = '<pre class="mermaid"'


def told(
    module: str,  # full name
    name: str,  # inside the module
) -> Told:
    "What the comments say about an object."
    path = Path(__file__).resolve().parent.parent / f"{module.replace('.', '/')}.py"
    return comments_of(path).get(name, Told()) if path.exists() else Told()


def process_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    "Docstrings as they are written here, with the comments behind parameters as a list of fields."
    module = next((each for each in sorted(modules(), key=len, reverse=True) if f"{name}.".startswith(f"{each}.")), "")
    comments = told(module, name.removeprefix(f"{module}.")) if module != name else Told()
    if what in ("data", "attribute"):  # whatever else there may be is what the type says about itself
        lines[:] = [rst(comments.value)]
        return
    if what == "class":  # what every NamedTuple says of itself is no news
        lines[:] = [line for line in lines if not line.startswith("Create new instance of ")]
    if what == "method" and not any(lines):
        holder = getattr(import_module(module), name.removeprefix(f"{module}.").partition(".")[0])
        lines[:] = promised(holder, name.rpartition(".")[2]).splitlines()
    lines[:] = [rst(line) for line in lines]
    fields = [f":param {parameter}: {rst(text)}" for parameter, text in comments.parameters.items()]
    fields += [f":returns: {rst(comments.returns)}"] * bool(comments.returns)
    if fields:
        lines += ["", *fields, ""]


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    "nbdev exports the logger of a module too; it is nobody's to use."
    return True if name == "log" else None


@cache
def our_names(env: BuildEnvironment) -> dict[str, str]:
    "Short name → full name of what the reference has, where only one thing is called so. Once all pages are read."
    found: dict[str, set[str]] = {}
    for full, entry in env.domains.python_domain.objects.items():
        if full.startswith(f"{PACKAGE}.") and not entry.aliased:
            parts = full.split(".")
            shorts = {full, ".".join(parts[-2:]), parts[-1]} if entry.objtype != "module" else {full}
            for short in shorts:
                found.setdefault(short, set()).add(full)
    return {short: fulls.pop() for short, fulls in found.items() if len(fulls) == 1}


class NamesInProse(SphinxTransform):
    "Marks code type that may be a name of ours; which it is will be known when all pages are read."

    default_priority = 600

    def apply(self, **kwargs: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            text = literal.astext().removesuffix("()")
            known_otherwise = isinstance(literal.parent, nodes.reference | addnodes.pending_xref | nodes.title)
            if (
                known_otherwise
                or "c" in literal["classes"]
                or not TELLING.search(text)
                or not re.fullmatch(r"[A-Za-z_][\w.]*", text)
            ):
                continue
            link = addnodes.pending_xref(
                "", reftype="ours", refdomain="", reftarget=text, refdoc=self.env.docname, refwarn=False
            )
            literal.replace_self(link)
            link += literal


def resolve_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    "A name of ours becomes a link; one which is nobody's stays what it is; a link of ours to nothing is an error."
    if node["reftype"] != "ours":
        if node.get("refdomain") == "py" and str(node["reftarget"]).startswith(f"{PACKAGE}."):
            log.warning("there is no %s in the reference", node["reftarget"], location=node)
        return None
    if full := our_names(env).get(node["reftarget"]):
        domain = env.domains.python_domain
        made = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, content)
        if made is not None:
            return made
    return content


class English(SearchEnglish):
    "The search's words, each brought to its stem once, and not again for each page which has it."

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__(options)
        self.stem = cache(super().stem)  # type: ignore[method-assign]


class Mermaid(SphinxDirective):
    "A drawing which the reader's browser draws, from a fence as GitHub and JupyterLab know it."

    has_content = True
    option_spec = {"alt": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        label = html.escape(self.options.get("alt", "A drawing"), quote=True)
        text = html.escape("\n".join(self.content))
        return [nodes.raw("", f'{MERMAID} role="img" aria-label="{label}">\n{text}\n</pre>', format="html")]


class Drawing(SphinxDirective):
    "An SVG file inside the page, where the page's colours reach it."

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        svg = Path(path).read_text(encoding="utf-8")
        svg = svg[svg.index("<svg") :].replace(
            "<svg", f'<svg role="img" aria-label="{html.escape(self.options["alt"], quote=True)}"', 1
        )
        return [nodes.raw("", f'<figure class="drawing">{svg}</figure>', format="html")]


def page_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    "Only pages with a drawing pay for what draws it."
    if MERMAID in context.get("body", ""):
        app.add_js_file("vendor/mermaid.min.js")
        app.add_js_file("drawings.js")


@cache
def unmarked(app: Sphinx, **how: Any) -> nodes.Element:
    "The list of all pages as the site's root has it, where no page in it is the one that is read."
    found = global_toctree_for_doc(app.env, "", app.builder, tags=app.tags, **how) or nodes.paragraph()
    for link in found.findall(nodes.reference):
        link["from_root"] = link["refuri"]
    return found


def page_tree(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """The list of all pages, which stands beside each: the same one as Sphinx makes, but made once.

    For each page Sphinx would copy the headings of all pages and every name of the reference, and throw them away, for
    Furo's list has nothing but titles: that was half of the whole build. From page to page only two things in it
    change, where its links start and which branch is marked; so those are set, and the rest is left alone.
    """
    made_by_sphinx = context["toctree"]

    def tree(**how: Any) -> str:
        if not how.get("titles_only"):
            return str(made_by_sphinx(**how))
        found, here = unmarked(app, **how), app.builder.get_target_uri(page)
        branch: list[nodes.Element] = []
        for link in found.findall(nodes.reference):
            if link["internal"]:
                link["refuri"] = relative_uri(here, link["from_root"]) or "#"
                node = link if link["from_root"] == here else None
                while node is not None:
                    branch.append(node)
                    node = node.parent
        for node in branch:
            node["classes"].append("current")
        fragment = app.builder.render_partial(found)["fragment"]
        for node in branch:
            node["classes"].remove("current")
        return fragment

    context["toctree"] = tree


class Day(Style):
    "Ink on paper: words of the language in bold, and comments as readable as the code, since they are half of it."

    background_color = "#f6f3ec"
    highlight_color = "#efe4c8"
    styles = {
        Token: "#26221c",
        Comment: "italic #6b6152",
        Comment.Preproc: "noitalic #8a4b14",
        Keyword: "bold #26221c",
        Keyword.Constant: "bold #26221c",
        Keyword.Type: "nobold #0b5d66",
        Name.Function: "#8f3a12",
        Name.Class: "bold #8f3a12",
        Name.Decorator: "#7a5a12",
        Name.Builtin: "#0b5d66",
        Name.Exception: "#0b5d66",
        Operator.Word: "bold #26221c",
        Operator: "#5d5548",
        String: "#3f6212",
        String.Doc: "italic #3f6212",
        String.Interpol: "#0b5d66",
        Number: "#0b5d66",
        Literal: "#0b5d66",
        Generic.Prompt: "bold #8f3a12",
        Error: "#26221c",
    }


class Night(Style):
    "The same under a lamp."

    background_color = "#1d2124"
    highlight_color = "#3a3523"
    styles = {
        Token: "#ddd8cc",
        Comment: "italic #9d9482",
        Comment.Preproc: "noitalic #d79b62",
        Keyword: "bold #f3eee1",
        Keyword.Constant: "bold #f3eee1",
        Keyword.Type: "nobold #7fc4c9",
        Name.Function: "#f0a36b",
        Name.Class: "bold #f0a36b",
        Name.Decorator: "#d9b66a",
        Name.Builtin: "#7fc4c9",
        Name.Exception: "#7fc4c9",
        Operator.Word: "bold #f3eee1",
        Operator: "#aaa293",
        String: "#a9c77d",
        String.Doc: "italic #a9c77d",
        String.Interpol: "#7fc4c9",
        Number: "#7fc4c9",
        Literal: "#7fc4c9",
        Generic.Prompt: "bold #f0a36b",
        Error: "#ddd8cc",
    }


def setup(app: Sphinx) -> dict[str, Any]:
    # A page is a tree of many thousand objects, and few of them ever become garbage. To look for it as often as Python
    # does unasked is a quarter of the work.
    gc.set_threshold(GARBAGE)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", resolve_name)
    app.connect("html-page-context", page_scripts)
    app.connect("html-page-context", page_tree, priority=400)  # before Furo, at 500, asks for the list
    app.add_search_language(English)
    app.add_transform(NamesInProse)
    app.add_directive("mermaid", Mermaid)
    app.add_directive("drawing", Drawing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
