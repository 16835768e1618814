"""Sphinx configuration."""

from __future__ import annotations

import itertools
import re
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import FunctionType, ModuleType

import ziamath
from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent))
import animations

PAGES = Path(__file__).parent / "reference" / "pages"
REFERENCE = {
    "chaos": ["chaos", "chaos.o2grad"],
    "dd_two_player": ["dd_two_player", "dd_two_player.principal_flow", "dd_two_player.gans"],
    "eigengame": ["eigengame", "eigengame.core"],
    "instability": ["instability", "instability.pde"],
    "variance": ["variance", "variance.losses", "variance.per_example", "variance.statistics"],
    "gdyn_common": [
        f"gdyn_common.{name}" for name in ("logging", "seeding", "errors", "spectral", "storage", "display")
    ],
    "gdyn_reproduce": [
        f"gdyn_reproduce.{name}"
        for name in ("registry", "claims", "runs", "records", "keys", "plotting", "testing", "data")
    ],
}
"""The modules of each page; where a module has a list of public names, only those are shown."""

project = "gdyn"
author = "the gdyn authors"
copyright = "2026, the gdyn authors"
release = "0.1.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
]
bibtex_bibfiles = ["references.bib"]
suppress_warnings = ["ref.python"]  # short names such as `mean` stand in several packages
exclude_patterns = ["_build", "requirements.txt"]
html_theme = "furo"
html_title = "gdyn"
html_static_path = ["assets"]
html_css_files = ["gdyn.css"]
html_math_renderer = "drawn"  # into the page itself: no script and no request, so it works offline

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}  # else spelled out, which takes five lines
autodoc_default_options = {
    "members": True,
    "undoc-members": False,
    "show-inheritance": True,
    "ignore-module-all": True,
}
napoleon_google_docstring = True
napoleon_use_ivar = True  # an Attributes section would document dataclass fields a second time


_REQUESTS = re.compile(r"set_\w+_request$")  # scikit-learn's metadata routing, the same for every estimator


def escape_bars(app, what, name, obj, options, lines):
    """Let a docstring write absolute values with bars, which reStructuredText reads as substitutions."""
    for i, line in enumerate(lines):
        pieces = line.split("``")
        pieces[::2] = [piece.replace("|", r"\|") for piece in pieces[::2]]
        lines[i] = "``".join(pieces)


def skip_requests(app, what, name, obj, skip, options):
    """Leave out the methods that scikit-learn adds to every estimator."""
    return True if _REQUESTS.match(name) else None


def draw_formula(tex, inline):
    """Return a formula as a picture that stands on the line of the text and takes its colour."""
    formula = ziamath.Latex(tex, size=17, color="currentColor", inline=inline, title=tex)
    style = f"vertical-align: {formula.getyofst():.2f}px; max-width: 100%"
    return formula.svg().replace("<svg ", f'<svg role="img" style="{style}" ', 1)


def visit_inline_formula(self, node):
    """Write a formula inside a line."""
    self.body.append(draw_formula(node.astext(), inline=True))
    raise nodes.SkipNode


def visit_displayed_formula(self, node):
    """Write a formula on a line of its own."""
    self.body.append(f'<p style="text-align: center">{draw_formula(node.astext(), inline=False)}</p>')
    raise nodes.SkipNode


def directives(name, shown):
    """Return what documents a module: its public names, else all it holds but what is shown already."""
    module = import_module(name)
    if hasattr(module, "__all__"):
        return [directive(name, public, shown) for public in sorted(module.__all__, key=str.lower)]
    parts = [name]
    if hasattr(module, "__path__"):
        parts = [f"{name}.{part.name}" for part in iter_modules(module.__path__) if part.name[0] != "_"]
    left_out = ", ".join(sorted(shown))
    return [f".. automodule:: {part}\n   :exclude-members: {left_out}\n" for part in parts]


def directive(module, name, shown):
    """Return what documents one public name, and note that it is shown."""
    found = getattr(import_module(module), name)
    if isinstance(found, ModuleType):
        return f"``{module}.{name}``: {found.__doc__.splitlines()[0]}\n"
    if not isinstance(found, (type, FunctionType)):  # a constant, or a name for a type
        return f"``{module}.{name}``\n"
    if name in shown:
        return ""
    shown.add(name)
    return f".. auto{'class' if isinstance(found, type) else 'function'}:: {module}.{name}\n"


def write_reference(app):
    """Write one page per distribution, with types and shapes."""
    PAGES.mkdir(exist_ok=True)
    for page, modules in REFERENCE.items():
        lines, shown = [f"# {page}", ""], set()
        for module in modules:
            summary = import_module(module).__doc__.splitlines()[0]
            entries = directives(module, shown)
            lines += [f"## {module}", ""] if module != page else []
            lines += ["````{eval-rst}", summary, "", *entries, "````", ""]
        PAGES.joinpath(f"{page}.md").write_text("\n".join(lines))


def draw_moving_pictures(app):
    """Draw the moving pictures of the front page."""
    animations.draw_all(Path(__file__).parent / "moving")


_FILES = re.compile(r"(?<!!)\[([^\]]*)\]\((?:results|src)/[^)]*\)")


def unlink_files(app, relative_path, parent_docname, content):
    """Turn a README's links to pictures and code, which are no pages here, into text."""
    if relative_path.name == "README.md":
        text = re.sub(r", \[code\]\([^)]*\)", "", content[0])
        text = _FILES.sub(r"\1", text).replace("](../../RESULTS.md", "](../results.md")
        content[0] = text.replace("](../../docs/", "](../")


_UNLINKED = re.compile(r'(?<!">)<img [^>]*src="([^"]*)"[^>]*>')


def finish_page(app, page, template, context, doctree):
    """Fit a page to a phone: cells of tables name their columns, a tap opens a picture at full size."""
    body = _UNLINKED.sub(r'<a href="\1">\g<0></a>', context.get("body", ""))
    context["body"] = re.sub(r"<table.*?</table>", _with_columns, body, flags=re.DOTALL)


def _with_columns(table):
    """Return a matched table with ``data-column`` in its cells."""
    heads = re.findall(r"<th\b.*?</th>", table[0], re.DOTALL)
    if not heads:
        return table[0]
    names = itertools.cycle(re.sub("<[^>]*>", "", head).strip() for head in heads)
    named = re.sub("<td", lambda cell: f'<td data-column="{next(names)}"', table[0])
    return re.sub(r"(<td[^>]*>)\s*(<p></p>)?\s*</td>", r"\1</td>", named)


def setup(app):
    """Register the hooks and the renderer of formulas."""
    app.connect("include-read", unlink_files)
    app.connect("html-page-context", finish_page)
    app.connect("builder-inited", write_reference)
    app.connect("builder-inited", draw_moving_pictures)
    app.add_html_math_renderer("drawn", (visit_inline_formula, None), (visit_displayed_formula, None))
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("autodoc-skip-member", skip_requests)
