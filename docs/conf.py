"""The documentation site: `make docs`. Nothing is fetched from the network, neither here nor by a reader."""

import os
import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import torch
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator
from sphinx_gallery.scrapers import figure_rst

ROOT = Path(__file__).parents[1]

torch.manual_seed(0)  # of the examples
torch.set_num_threads(1)

project = "lr-relax"
author = "The lr-relax developers"
version = release = version_of("lr-relax")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["examples"]  # the gallery shows them
nitpicky = True
suppress_warnings = ["config.cache"]  # `scrape` is a function, which cannot be pickled

html_theme = "furo"
html_title = f"lr-relax {version}"
html_copy_source = html_show_sourcelink = html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"


def scrape(block: object, variables: dict[str, Any], conf: dict[str, Any]) -> str:
    """Save the variable `figure` of an example, because pyplot does not know the figures of our functions."""
    figure = variables["example_globals"].pop("figure", None)
    if figure is None:
        return ""
    path = next(variables["image_path_iterator"])
    figure.savefig(path, dpi=120)
    return figure_rst([path], conf["src_dir"])


sphinx_gallery_conf = {
    "image_scrapers": (scrape,),
    "capture_repr": (),  # what is printed only
    "within_subsection_order": "ExampleTitleSortKey",
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 60,
    "download_all_examples": False,
}

default_role = "py:obj"  # names in single backticks are links, where there is something to link to
napoleon_custom_sections = [("Shape", "params_style")]
napoleon_use_rtype = False
napoleon_use_param = False  # several arguments share a line of their own
toc_object_entries_show_parents = "hide"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
nitpick_ignore_regex = [
    ("py:obj", r"(?!lr_relax\.).*"),  # names of arguments, and of other packages
    ("py:class|py:exc", ".*"),  # types of signatures
]

# Files of the repository, and the pages that include them.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "inside/contributing.md",
    "CHANGELOG.md": "inside/changelog.md",
    "misc/README.md": "replication/data.md",
}


def link_pages(text: str, folder: Path) -> str:
    """Links between files of the repository, where its pages are read too, as links of the site."""

    def target(link: re.Match[str]) -> str:
        path = (folder / link[1]).resolve().relative_to(ROOT)
        if path.parts[:2] == ("docs", "examples"):
            page = f"gallery/{path.stem if path.suffix else 'index'}.rst"
        elif (ROOT / path).is_dir():
            page = PAGES[f"{path.parts[0]}/README.md"]
        else:
            page = PAGES.get(str(path)) or os.path.relpath(path, "docs")
        return f"](/{page}{link[2]})"

    return re.sub(r"\]\(([^):#\s]+)(#[^)\s]*|)\)", target, text)


def read_source(app: Sphinx, docname: str, content: list[str]) -> None:
    if docname in app.env.found_docs and Path(app.env.doc2path(docname)).suffix == ".md":
        content[0] = link_pages(content[0], Path(app.env.doc2path(docname)).parent)


def read_included(app: Sphinx, file: Path, parent: str, content: list[str]) -> None:
    content[0] = link_pages(content[0], (Path(app.srcdir) / file).resolve().parent)


def mathml(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Formulas as MathML, which browsers show without a script or a font."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_source)
    app.connect("include-read", read_included)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
