"""The series as a book. `sphinx-build notebooks build` shows the committed outputs, in under a minute and without a network.

`-D nb_execution_mode=force` executes every chapter first, prints each cell as it goes, and stops at the first error.
"""

import functools
import os
import re
import sys
import time
from pathlib import Path

import nbclient
import nbformat
from docutils import nodes
from sphinx.errors import SphinxError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from plot_tools.clean_outputs import tidy

project = "Invariant representations with a conditional VAE"
author = "the authors of the series"
html_title = "Invariant representations"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx_copybutton", "sphinx-mathjax-offline"]
myst_enable_extensions = ["dollarmath", "amsmath"]
mathjax_path = "mathjax/tex-chtml.js"  # MathJax 3, which brings its own fonts; version 4 fetches them from a network
nb_execution_mode = "off"
exclude_patterns = ["**.ipynb_checkpoints"]
copybutton_selector = "div.cell_input div.highlight pre, div.highlight-bash pre, div.highlight-python pre"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_theme_options = {"home_page_in_toc": True}
html_show_sphinx = False

CHAPTER = re.compile(r"\d\d_")
EXPORT = re.compile(r"^#\| (?:export|default_exp \w+)\n", re.MULTILINE)  # marks for nbdev, nothing to read
DEFINED = re.compile(r"^(?:def|class) (\w+)", re.MULTILINE)


# Executing


def take_over_execution(app, config):
    """The chapters are executed below, cell by cell and in view, and not by myst-nb."""
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True  # it copies files; it only forgot to say so
    app.execute_chapters = config.nb_execution_mode == "force"
    config.nb_execution_mode = "off"
    threads = str(max(1, (os.cpu_count() or 1) // app.parallel))
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC"):
        if app.execute_chapters and app.parallel > 1:  # threads that wait for each other's cores cost several times as much
            os.environ.setdefault(name, threads)


def all_chapters(app, env, added, changed, removed):
    return [name for name in env.found_docs if CHAPTER.match(name)] if app.execute_chapters else []


def execute(app, docname, source):
    """Put the executed notebook in the place of the committed one; print chapter, cell and seconds on the way."""
    if not app.execute_chapters or not CHAPTER.match(docname):
        return
    notebook, began = nbformat.reads(source[0], as_version=4), time.perf_counter()
    total, started = len(notebook.cells), {}

    def starts(cell, cell_index):
        started[cell_index] = time.perf_counter()

    def ends(cell, cell_index, execute_reply):
        seconds = time.perf_counter() - started[cell_index]
        print(f"{docname}  cell {cell_index + 1:2d}/{total}  {seconds:6.1f} s", flush=True)

    hooks = {"on_cell_start": starts, "on_cell_executed": ends}
    folder = {"metadata": {"path": app.srcdir}}
    client = nbclient.NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=folder, **hooks)
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        raise SphinxError(f"{docname}, cell {max(started) + 1} of {total}: {error.ename}: {error.evalue}\n\n{plain}") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    print(f"{docname}  done in {time.perf_counter() - began:.0f} s", flush=True)
    source[0] = nbformat.writes(notebook)


# Links between the API and the cells that teach it


def anchor_definitions(app, doctree):
    """Give each exported cell an anchor for every name that it defines, and hide the marks for nbdev."""
    labels = app.env.domaindata["std"]["anonlabels"]
    for block in doctree.findall(nodes.literal_block):
        text = block.astext()
        if not EXPORT.search(text):
            continue
        for name in DEFINED.findall(text):
            block.parent["ids"].append(f"taught-{name}")
            labels[f"taught-{name.lower()}"] = (app.env.docname, f"taught-{name}")
        block.rawsource = EXPORT.sub("", text).lstrip("\n")
        block.children = [nodes.Text(block.rawsource)]


def plain_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text: keep their lines, show `code` as code, and link to the cell that teaches the name."""
    for index, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"([*|\\_])", r"\\\1", part) for part in parts[::2]]
        lines[index] = "``".join(parts)
    if what in ("function", "class") and obj.__module__.startswith("icvae.") and obj.__name__ in taught():
        lines += ["", f":ref:`the cell that teaches it <taught-{obj.__name__}>`"]


@functools.cache
def taught():
    """The names that the chapters export."""
    cells = [cell for path in Path(__file__).parent.glob("*.ipynb") for cell in nbformat.read(path, 4).cells]
    return {name for cell in cells if EXPORT.search(cell.source) for name in DEFINED.findall(cell.source)}


def setup(app):
    app.connect("config-inited", take_over_execution, priority=100)
    app.connect("env-get-outdated", all_chapters)
    app.connect("source-read", execute)
    app.connect("doctree-read", anchor_definitions)
    app.connect("autodoc-process-docstring", plain_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
