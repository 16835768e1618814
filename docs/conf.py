"""Sphinx configuration."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import ziamath
from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent))
import animations

PACKAGES = sorted(Path(__file__).parents[1].glob("packages/*/pyproject.toml"))
PUBLIC = Path(__file__).parent / "reference" / "public"

project = "gdyn"
author = "the gdyn authors"
copyright = "2026, the gdyn authors"
release = "0.1.0"

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
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
html_math_renderer = "drawn"  # into the page itself: no script and no request, so it works offline

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
autodoc_member_order = "bysource"
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


def write_public_pages(app):
    """Write one page per package: every public name, in the order of its stub, with types and shapes."""
    PUBLIC.mkdir(exist_ok=True)
    for project in PACKAGES:
        package = project.parent.name
        stub = project.parent / "src" / package / "__init__.pyi"
        names = re.findall(r"^from \.([\w.]*) import (\w+) as \2$", stub.read_text(), re.MULTILINE)
        lines = [f"# {package}", "", "Import these from the package itself.", ""]
        for module, name in sorted(names, key=lambda pair: pair[1].lower()):
            parent = f"{package}.{module}".rstrip(".")
            target = import_module(parent)
            path = f"{parent}.{name}"
            if not hasattr(target, name):  # a module of the package
                import_module(path)
            found = getattr(target, name)
            if isinstance(found, ModuleType):
                lines += [f"`{package}.{name}`: {found.__doc__.splitlines()[0]}", ""]
                continue
            if not callable(found):  # a constant, whose documentation would be that of its type
                lines += [f"`{package}.{name}`, in `{parent}`", ""]
                continue
            kind = "class" if isinstance(found, type) else "function"
            lines += [f"```{{eval-rst}}\n.. auto{kind}:: {path}\n   :noindex:\n```", ""]
        PUBLIC.joinpath(f"{package}.md").write_text("\n".join(lines))


def draw_moving_pictures(app):
    """Draw the moving pictures of the front page."""
    animations.draw_all(Path(__file__).parent / "moving")


_FILES = re.compile(r"(?<!!)\[([^\]]*)\]\((?:results|src)/[^)]*\)")


def unlink_files(app, relative_path, parent_docname, content):
    """Turn a README's links to pictures and code, which are no pages here, into text."""
    if relative_path.name == "README.md":
        text = re.sub(r", \[code\]\([^)]*\)", "", content[0])
        content[0] = _FILES.sub(r"\1", text).replace("](../../RESULTS.md", "](../results.md")


def setup(app):
    """Register the hooks and the renderer of formulas."""
    app.connect("include-read", unlink_files)
    app.connect("builder-inited", write_public_pages)
    app.connect("builder-inited", draw_moving_pictures)
    app.add_html_math_renderer("drawn", (visit_inline_formula, None), (visit_displayed_formula, None))
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("autodoc-skip-member", skip_requests)


apidoc_modules = [
    {
        "path": f"../{folder}/src/{name}",
        "destination": f"reference/{name}",
        "separate_modules": True,
        "module_first": True,
        "max_depth": 1,
    }
    for folder, name in (
        ("common", "gdyn_common"),
        ("reproduce", "gdyn_reproduce"),
        *((f"packages/{path.parent.name}", path.parent.name) for path in PACKAGES),
    )
]
