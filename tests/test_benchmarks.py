"""The benchmark runs, and its contenders train the same objective. Nothing here depends on speed."""

import csv
import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def committed(what):
    with open(ROOT / "benchmarks" / "results.csv") as file:
        return [row for row in csv.DictReader(file) if row["what"] == what]


def readme_rows(start):
    """The fields of the README's table whose head begins with `start`."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| {start}"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    return [[field.strip() for field in row.strip("|").split("|")] for row in rows]


def test_the_readme_shows_the_committed_table():
    epochs = [(f"{float(r['seconds']):.2f}", f"{float(r['ratio']):.2f}") for r in committed("epoch") if r["batch_size"] != "128"]
    rows = readme_rows("one epoch")
    assert len(rows) >= 6 and all((seconds, ratio) in epochs for _, seconds, ratio in rows[:-1])
    assert rows[-1][1:] == [min(seconds for seconds, _ in epochs if float(seconds) > 0 and (seconds, "1.00") in epochs), "1"]
    times = [[f"{float(r['seconds']):.1f}", f"{1 / float(r['ratio']):.1f}"] for r in committed("quality")]
    times = [[*row, re.search(r"leak (0\.\d+)", r["figure"])[1]] for row, r in zip(times, committed("quality"), strict=True)]
    assert [row[1:] for row in readme_rows("a fresh process")] == times and len(times) >= 3
    costs = {(r["name"], r["batch_size"]): f"{float(r['seconds']):.4f}" for r in committed("marginal kl")}
    for way, row in zip(("broadcast", "pairs", "exact"), readme_rows("marginal KL"), strict=True):
        assert row[1:] == [costs.get((way, size), "") for size in ("1024", "16384", "65536")]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    pytest.importorskip("jax")
    out = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (out / "results.md").read_text() in run.stdout
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "results.md"]
    with open(out / "results.csv") as file:
        return list(csv.DictReader(file))


def test_every_contender_is_there_with_machine_versions_and_date(table):
    names = {(row["name"], row["backend"]) for row in table if row["what"] == "epoch"}
    backends = [b for b in ("jax", "tensorflow", "torch") if importlib.util.find_spec(b)]
    expected = {(name, b) for name in ("this project", "matrix products") for b in backends}
    expected |= {("original way", "tensorflow" if "tensorflow" in backends else backends[0]), ("plain JAX, one scan", "jax")}
    expected |= {("plain PyTorch", "torch")} if "torch" in backends else set()
    assert names == expected
    for row in table:
        assert row["machine"] and row["date"] and "keras" in row["versions"] and float(row["seconds"]) > 0
        if row["what"] == "epoch":
            assert row["device"] and float(row["lowest"]) <= float(row["seconds"]) <= float(row["highest"]) and float(row["ratio"]) > 0


def test_all_contenders_minimise_the_same_loss(table):
    losses = [float(row["figure"]) for row in table if row["what"] == "epoch" and row["name"] != "matrix products"]
    assert max(losses) < 1.1 * min(losses)  # other initialisations and batch sizes, the same objective


def test_all_ways_to_the_marginal_kl_agree(table):
    found = {}
    for row in table:
        if row["what"] == "marginal kl":
            found.setdefault(row["batch_size"], []).append(float(row["figure"]))
    assert sorted(map(int, found)) == [64, 256, 1024]
    for values in found.values():
        assert len(values) == 3
        np.testing.assert_allclose(values, values[0], rtol=1e-3)
