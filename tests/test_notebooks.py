"""Checks on the chapters as committed: outputs, size, form, and that the package is in step with them."""

import ast
import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import icvae

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"/(home|root|work|tmp|Users|usr|opt|mnt)/|[A-Z]:\\")


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def cells(request):
    return json.loads(request.param.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def code(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def outputs(cells):
    return [output for cell in code(cells) for output in cell["outputs"]]


def text(output):
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")))


def test_there_are_chapters():
    assert [path.name[:2] for path in CHAPTERS] == [f"{n:02d}" for n in range(1, len(CHAPTERS) + 1)] and len(CHAPTERS) >= 4


def test_size():
    for path in CHAPTERS:
        assert path.stat().st_size <= 300_000, f"{path.name} has more than 300 kB"


def test_one_clean_run_in_order(cells):
    counts = [cell["execution_count"] for cell in code(cells)]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_are_clean(cells):
    for output in outputs(cells):
        assert output["output_type"] in ("stream", "display_data", "execute_result"), text(output)
        assert output.get("name") != "stderr", text(output)
        kinds = set(output.get("data", {}))
        assert kinds <= {"image/png", "text/plain"}, kinds
        assert not MACHINE_PATH.search(text(output)), text(output)
    assert any("image/png" in output.get("data", {}) for output in outputs(cells))


def test_outputs_are_of_the_full_mnist_run(cells):
    printed = "\n".join(map(text, outputs(cells)))
    assert "quick mode" not in printed and "handwritten digits" not in printed
    if any("load_data()" in source(cell) for cell in cells):
        assert "Data: MNIST" in printed and "60000 training and 10000 test" in printed


def test_cells_are_short(cells):
    assert len(cells) <= 60
    for cell in code(cells):
        assert len(source(cell).splitlines()) <= 30, source(cell)
        assert all(len(line) <= 140 for line in source(cell).splitlines()), source(cell)


def test_no_machine_paths_in_the_source(cells):
    assert not any(MACHINE_PATH.search(source(cell)) for cell in cells)


def test_opening_and_closing(cells):
    first, last = source(cells[0]), source(cells[-1])
    assert re.match(r"# \d\. ", first)
    assert all(f"**{word}**" in first for word in ("You will learn", "You need", "Time"))
    assert "minute" in first and "2-core CPU" in first
    positions = [last.index(heading) for heading in ("## Summary", "## Exercises", "Solutions</summary>", "## References")]
    assert positions == sorted(positions)


def test_every_figure_is_read(cells):
    """A figure is followed by text before the next figure."""
    for index, cell in enumerate(cells):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            following = cells[index + 1 : index + 4]
            assert any(c["cell_type"] == "markdown" and len(source(c)) > 80 for c in following), source(cell)


def test_markdown_is_complete(cells):
    for cell in cells:
        assert "TODO" not in source(cell) and "XXX" not in source(cell)


def test_export_is_in_step(tmp_path):
    for folder in ("notebooks", "icvae"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    generated = [path for path in (tmp_path / "icvae").glob("*.py") if path.name != "__init__.py"]
    for path in generated:
        path.unlink()
    export = shutil.which("nbdev-export", path=str(Path(sys.executable).parent)) or "nbdev-export"
    subprocess.run([export], cwd=tmp_path, check=True, capture_output=True)
    made = {path.name for path in (tmp_path / "icvae").glob("*.py")} - {"_modidx.py"}
    assert made == {path.name for path in (ROOT / "icvae").glob("*.py")} - {"_modidx.py"}
    for name in made:
        assert (tmp_path / "icvae" / name).read_text() == (ROOT / "icvae" / name).read_text(), f"{name}: run nbdev-export"


def public_definitions():
    for path in sorted((ROOT / "icvae").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield pytest.param(node, id=f"{path.stem}.{node.name}")


@pytest.mark.parametrize("node", list(public_definitions()))
def test_every_export_has_a_docstring(node):
    assert len(ast.get_docstring(node) or "") > 30


def test_exports_name_no_backend():
    for path in (ROOT / "icvae").glob("*.py"):
        assert not re.search(r"\b(tf|torch|jax|jnp|tensorflow)\.|import (tensorflow|torch|jax)\b", path.read_text()), path.name


def test_public_names():
    promised = "load_data Sampling build_encoder build_decoder kl_prior kl_pairwise kl_marginal kl_gaussian_marginal ICVAE"
    promised += " mutual_information probe_leakage load_pretrained EchoNoise InvariantPredictor leak_batch mmd log_marginal_own"
    assert set(promised.split()) <= set(icvae.__all__)
    assert all(hasattr(icvae, name) for name in icvae.__all__)


README_ROWS = [  # the row in the README, the chapter, the line that it prints
    ("VAE", 4, "VAE "),
    ("CVAE", 4, "CVAE "),
    ("ICVAE", 4, "ICVAE "),
    ("CVAE, beta 1.6", 5, "CVAE 1.6, 40 epochs"),
    ("CVAE, beta 1.1, + moments + 90 MMD", 5, "both, 40 epochs"),
    ("plain classifier", 7, "plain "),
    ("MMD", 7, "MMD "),
    ("adversary", 7, "adversary "),
    ("VIB (no decoder)", 7, "VIB "),
    ("ICVAE predictor", 7, "ICVAE "),
]


@pytest.mark.parametrize(("name", "chapter", "start"), README_ROWS)
def test_numbers_of_the_readme_are_those_of_the_chapters(name, chapter, start):
    """Each number in the README's tables of results stands in the line that the chapter prints."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| {name} |")]
    numbers = [field.strip() for field in row.strip("|").split("|")][1:]
    printed = "\n".join(map(text, outputs(json.loads(CHAPTERS[chapter - 1].read_text(encoding="utf-8"))["cells"])))
    tables = printed[printed.index({4: "held-out  ", 5: "mean (sd)", 7: "mean (sd)"}[chapter]) :]
    line = next(line for line in tables.splitlines() if line.startswith(start))
    assert len(numbers) >= 3 and [number for number in numbers if number not in line.split()] == [], line


def test_pictures_of_the_readme_are_those_of_the_chapters():
    """A picture in the README is a figure that a chapter shows."""
    shown = {
        base64.b64decode("".join(output["data"]["image/png"]))
        for path in CHAPTERS
        for output in outputs(json.loads(path.read_text(encoding="utf-8"))["cells"])
        if "image/png" in output.get("data", {})
    }
    named = re.findall(r"!\[.+?\]\((notebooks/pictures/\w+\.png)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) >= 2 and all((ROOT / name).read_bytes() in shown for name in named)
