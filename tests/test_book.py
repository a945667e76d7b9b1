"""The book, built from the committed outputs: complete, without a warning, and readable without a network."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
WIDTHS = (1280, 390)


def build(source, target, *options):
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    pytest.importorskip("sphinx")
    target = tmp_path_factory.mktemp("book")
    run = build(ROOT / "notebooks", target, "--fail-on-warning", "-q")
    assert run.returncode == 0, run.stderr[-3000:]
    return target


@pytest.fixture(scope="module")
def pages(book):
    return {path.stem: path.read_text(encoding="utf-8") for path in book.glob("*.html")}


def test_every_page_is_there(pages):
    assert {"index", "api", "search", *CHAPTERS} <= set(pages)


def test_nothing_is_loaded_from_outside(book, pages):
    """No script, style sheet, font or image has an address: neither in a page nor in a style sheet."""
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|img|source|iframe)\b[^>]*\bsrc=\"([^\"]+)\"", page)
        loaded += re.findall(r"<link\b[^>]*\brel=\"(?:stylesheet|preload|icon)\"[^>]*\bhref=\"([^\"]+)\"", page)
        assert loaded and not [address for address in loaded if re.match(r"(?:https?:)?//", address)], name
    for sheet in book.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_every_chapter_has_its_neighbours(pages):
    order = ["index", *CHAPTERS, "api"]
    for before, name, after in zip(order, order[1:], order[2:], strict=False):
        assert re.search(rf'class="left-prev"\s+href="{before}.html', pages[name]), name
        assert re.search(rf'class="right-next"\s+href="{after}.html', pages[name]), name


def test_pages_show_no_marks_of_the_export(pages):
    for name in CHAPTERS:
        cells = re.findall(r'<div class="cell_input.*?<pre>(.*?)</pre>', pages[name], re.DOTALL)
        assert len(cells) > 15 and not [cell for cell in cells if "#|" in re.sub(r"<[^>]+>", "", cell)], name


def test_each_entry_of_the_api_links_to_the_cell_that_teaches_it(pages):
    links = set(re.findall(r'href="(\w+)\.html#(taught-\w+)"', pages["api"]))
    assert {name for _, name in links} >= {"taught-kl_marginal", "taught-ICVAE", "taught-leak_bounds", "taught-EchoNoise"}
    for page, anchor in links:
        assert f'id="{anchor}"' in pages[page], anchor


def test_figures_have_alternative_text(pages):
    for name in ("index", *CHAPTERS):
        for image in re.findall(r"<img\b[^>]*>", pages[name].split("<article")[1]):
            text = re.search(r'alt="([^"]*)"', image)
            assert text and len(text[1]) > 20 and "_images" not in text[1], (name, image)


@pytest.mark.parametrize("parallel", ["1", "2"])
def test_executing_shows_each_cell_and_stops_at_an_error(tmp_path, parallel):
    """In a book of six small chapters. The one that fails is named, with its cell, and no page is left."""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("sphinx")
    shutil.copy(ROOT / "notebooks" / "conf.py", tmp_path)
    names = [f"{number:02d}_small" for number in range(1, 7)]
    (tmp_path / "index.md").write_text("# Small\n\n```{toctree}\n" + "\n".join(names) + "\n```\n")

    def write(name, code):
        new = nbformat.v4
        cells = [new.new_markdown_cell(f"# {name}"), new.new_code_cell(code)]
        nbformat.write(new.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")

    for name in names:
        write(name, "print(6 * 7)")
    options = ("-j", parallel, "-D", "nb_execution_mode=force")
    run = build(tmp_path, tmp_path / "build", *options)
    assert run.returncode == 0, run.stderr[-2000:]
    assert all(re.search(rf"{name}  cell  2/2 +[\d.]+ s", run.stdout) for name in names), run.stdout
    assert all(">42\n" in (tmp_path / "build" / f"{name}.html").read_text() for name in names)

    shutil.rmtree(tmp_path / "build")
    write(names[2], "print(1)\n1 / 0")
    run = build(tmp_path, tmp_path / "build", *options)
    assert run.returncode != 0 and "03_small, cell 2 of 2: ZeroDivisionError: division by zero" in run.stderr + run.stdout
    assert not list((tmp_path / "build").glob("*.html"))


# In a browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(book):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(book)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or pytest.skip("no chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    """A page whose requests to any other machine fail, and are noted."""
    width = getattr(request, "param", WIDTHS[0])
    context = browser.new_context(viewport={"width": width, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
    page, page.strangers = context.new_page(), []

    def only_here(route):
        if route.request.url.startswith((address, "data:")):
            return route.continue_()
        page.strangers.append(route.request.url)
        return route.abort()

    context.route("**/*", only_here)
    yield page
    context.close()


def opened(page, address):
    """Go there and wait until the formulas, if there are any, are drawn."""
    page.goto(address)
    page.wait_for_function("!window.MathJax || (MathJax.startup && MathJax.startup.promise.then(() => true))")


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WIDE = """[...document.querySelectorAll('.cell_input pre, mjx-container[display="true"]')]
    .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map(e => e.innerText.slice(0, 200))"""


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
@pytest.mark.parametrize("name", ["index", *CHAPTERS, "api"])
def test_a_page_without_a_network(page, address, name):
    opened(page, f"{address}/{name}.html")
    for closed in page.query_selector_all("details:not([open])"):
        closed.evaluate("element => element.open = true")
    assert page.strangers == []
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    words = page.evaluate("""() => { const copy = document.querySelector('article').cloneNode(true);
        copy.querySelectorAll('pre, code, mjx-container, script').forEach(e => e.remove()); return copy.textContent; }""")
    assert "$" not in words, words[words.index("$") - 60 :][:160]
    assert page.evaluate(OVERFLOW) <= 0
    if page.viewport_size["width"] == WIDTHS[0]:
        assert page.evaluate(WIDE) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_solutions_open_and_show_their_formulas(page, address, name):
    opened(page, f"{address}/{name}.html")
    solutions = page.locator("details").last
    assert not solutions.evaluate("element => element.open")
    solutions.locator("summary").click()
    assert solutions.evaluate("element => element.open && element.offsetHeight > 100")
    formulas = solutions.locator("mjx-container")
    assert all(box and box["width"] > 0 for box in (formulas.nth(i).bounding_box() for i in range(formulas.count())))


def test_the_search_finds_a_loss(page, address):
    page.goto(f"{address}/search.html?q=kl_marginal")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert any("02_invariance_loss" in link.get_attribute("href") for link in page.query_selector_all("#search-results li a"))


def test_the_copy_button_copies_a_cell(page, address):
    page.goto(f"{address}/02_invariance_loss.html")
    cell = page.locator("#taught-kl_marginal")
    cell.hover()
    cell.locator("button.copybtn").click()
    page.wait_for_timeout(300)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("def kl_marginal(") and ">>>" not in copied and "In [" not in copied
    compile(copied, "copied", "exec")
    assert page.locator("div.cell_output button.copybtn").count() == 0
