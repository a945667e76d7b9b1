"""What training costs, measured in one run: `python -m benchmarks [--quick] [--out FOLDER]`. See `__init__.py` and the README."""

import argparse
import csv
import datetime
import importlib.metadata
import importlib.util
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from .quality import INFORMATION, RECON

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["what", "name", "backend", "device", "batch_size", "seconds", "lowest", "highest", "ratio", "megabytes", "figure"]
PARTS = ["epoch", "quality", "marginal kl"]
BACKENDS = [b for b in ("jax", "tensorflow", "torch") if importlib.util.find_spec(b)]  # the default of the series first
os.environ.setdefault("KERAS_BACKEND", BACKENDS[0])  # of this process, which only loads data
ORIGINAL = "tensorflow" if "tensorflow" in BACKENDS else BACKENDS[0]  # the backend of the original way
DEFAULT_BATCH = 250  # that of chapter 3's `train`


def start(module, *arguments, backend, **options):
    """A fresh Python process of this package on a backend. Its chatter goes to /dev/null, unless ICVAE_BENCHMARK_LOG names a file."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend}
    log = open(os.environ.get("ICVAE_BENCHMARK_LOG", os.devnull), "a")  # noqa: SIM115
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=log, **options)


def say(*words):
    print(f"[{time.perf_counter() - BEGIN:6.0f} s]", *words, file=sys.stderr, flush=True)


def line_of(process, first=""):
    """The words of the next line that starts with `first`. Raises RuntimeError if the process ends before."""
    for line in process.stdout:
        if line.startswith(first):
            return line.split()
    raise RuntimeError(f"{' '.join(map(str, process.args[2:]))} ended with {process.wait()}; set ICVAE_BENCHMARK_LOG to a file to see why")


def contenders(batch_size, quick):
    """Which processes take turns: (name in the table, function in contenders.py, backend, batch size)."""
    yield from (("this project", "project", backend, batch_size) for backend in BACKENDS)
    yield from (("matrix products", "products", backend, batch_size) for backend in BACKENDS)
    if "torch" in BACKENDS:
        yield "plain PyTorch", "torch_loop", "torch", batch_size
    if "jax" in BACKENDS:
        yield "plain JAX, one scan", "jax_scan", "jax", batch_size
    if batch_size == DEFAULT_BATCH:
        yield "original way", "original", ORIGINAL, 32
    if batch_size == DEFAULT_BATCH and not quick:
        if "tensorflow" in BACKENDS:
            yield "this project, without XLA", "without_xla", "tensorflow", batch_size
        for backend in (b for b in BACKENDS if b != "torch"):
            yield "this project, 16 steps per execution", "many_steps", backend, batch_size
            yield "this project, mixed_bfloat16", "sixteen_bits", backend, batch_size


def epoch_rows(data, batch_size, rounds, quick):
    """Seconds per epoch of all contenders, in turns, so that a drift of the machine hits all alike."""
    with ExitStack() as stack:
        running = []
        for name, function, backend, size in contenders(batch_size, quick):
            process = stack.enter_context(start("contenders", function, data, size, backend=backend, stdin=subprocess.PIPE))
            _, *device = line_of(process, "ready")
            say(f"{name}, {backend}, batch {size}: warm")
            running.append(
                (process, {"what": "epoch", "name": name, "backend": backend, "device": " ".join(device), "batch_size": size}, [])
            )
        for turn in range(rounds):
            for process, row, seconds in running:
                process.stdin.write("go\n")
                process.stdin.flush()
                took, loss = map(float, line_of(process))
                seconds.append(took)
                row["figure"] = "" if np.isnan(loss) else loss  # products have no loss
            say(f"round {turn + 1} of {rounds}")
    rows = [row | spread(seconds) for _, row, seconds in running]
    return [row | {"ratio": row["seconds"] / floor(rows, row)} for row in rows]


def floor(rows, row):
    """The fewest seconds that an epoch's matrix products took on a device of the same kind as that of `row`, CPU or not."""
    kind = "cpu" in row["device"].lower()
    alike = [other["seconds"] for other in rows if other["name"] == "matrix products" and ("cpu" in other["device"].lower()) == kind]
    return min(alike, default=float("nan"))


def spread(seconds):
    return {"seconds": statistics.median(seconds), "lowest": min(seconds), "highest": max(seconds)}


def quality_rows(rounds):
    """Seconds of whole processes until chapter 3's held-out figures are reached; the ways take turns."""
    ways = [("this project", "project", backend) for backend in BACKENDS]
    ways += [("this project, he_uniform", "relu", BACKENDS[0]), ("original way", "original", ORIGINAL)]
    taken, figures, devices = {way: [] for way in ways}, {}, {}
    for turn in range(rounds):
        for way in ways:
            begin = time.perf_counter()
            with start("quality", way[1], turn, backend=way[2]) as process:
                _, recon, information, epochs, seconds, *devices[way] = line_of(process, "quality")
                taken[way].append(time.perf_counter() - begin)
                leak = line_of(process, "leak")[1]
            figures.setdefault(way, []).append([float(value) for value in (recon, information, epochs, seconds, leak)])
            say(*way, f"{taken[way][-1]:.1f} s, recon {recon}, I {information}, {epochs} epochs in {seconds} s, leak {leak}")
    rows = []
    for way in ways:
        found = np.array(figures[way])
        (recon, _, epochs, _, leak), information = found.max(0), found[:, 1].min()
        note = f"recon {recon:.1f}, I {information:.2f}, leak {leak:.3f}, {epochs:.0f} epochs in {np.median(found[:, 3]):.1f} s"
        note += "" if recon <= RECON and information >= INFORMATION else ", NOT reached"
        row = {"what": "quality", "name": way[0], "backend": way[2], "device": " ".join(devices[way]), "figure": note}
        rows.append(row | spread(taken[way]))
    return [row | {"ratio": row["seconds"] / rows[-1]["seconds"]} for row in rows]


def marginal_rows(largest):
    """Seconds and memory of the marginal KL and its gradient against the batch size."""
    rows = []
    for way in ("broadcast", "pairs", "exact"):
        with start("marginal", way, largest, backend="jax") as process:
            for line in process.stdout:
                size, seconds, megabytes, value = map(float, line.split())
                rows.append({"what": "marginal kl", "name": way, "backend": "jax", "batch_size": int(size)})
                rows[-1] |= {"seconds": seconds, "megabytes": megabytes, "figure": value}
        say(f"marginal KL, {way}: up to B = {rows[-1]['batch_size']}")
    return rows


def machine():
    """One line: processor, cores, memory."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def write(path, text):
    """Under a temporary name, then renamed."""
    part = path.with_suffix(".tmp")
    part.write_text(text)
    os.replace(part, path)


def markdown(rows):
    """The table for people."""
    lines = ["# What training costs", ""]
    lines += ["`ratio`: of an epoch, to its matrix products alone on the fastest backend (of the original way, too, at batch 250);"]
    lines += ["of time to quality, to the original way. `figure`: of an epoch, the mean loss;"]
    lines += ["of time to quality, the worst of all runs (and the median seconds of their epochs); of the marginal KL, its value."]
    for what in dict.fromkeys(row["what"] for row in rows):
        part = [row for row in rows if row["what"] == what]
        used = [c for c in COLUMNS[1:] if c not in ("lowest", "highest") and any(row.get(c, "") != "" for row in part)]
        lines += ["", f"## {what}", "", *(f"{key}: {part[0][key]}  " for key in ("machine", "versions", "date", "data"))]
        lines += ["", "| " + " | ".join(used) + " |", "|" + "---|" * len(used)]
        lines += ["| " + " | ".join(str(row.get(c, "")) for c in used) + " |" for row in part]
    return "\n".join(lines) + "\n"


def load(quick):
    """MNIST's training images, else random data of the same size (which doesn't change the time); and which it was."""
    from icvae import load_data

    try:
        if not quick:
            (x, c), _ = load_data("mnist")
            return x, c, "MNIST"
    except FileNotFoundError as error:
        say(f"random data: {error}")
    rng, rows = np.random.default_rng(0), 2_000 if quick else 60_000
    return rng.random((rows, 784), dtype="float32"), np.eye(10, dtype="float32")[rng.integers(0, 10, rows)], "random data"


def main(quick, out, parts):
    x, c, source = load(quick) if {"epoch", "quality"} & set(parts) else ([], [], "")
    rows = []
    if "epoch" in parts:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.npz"
            np.savez(data, x=x, c=c)
            for batch_size in (DEFAULT_BATCH,) if quick else (DEFAULT_BATCH, 128):
                rounds = 1 if quick else 5 if batch_size == DEFAULT_BATCH else 3
                rows += epoch_rows(data, batch_size, rounds, quick)
        if all("cpu" in row["device"].lower() for row in rows):
            say("no GPU here: its rows are absent")
    if "quality" in parts and source == "MNIST":
        rows += quality_rows(3)
    elif "quality" in parts:
        say("time to quality needs MNIST: its rows are absent")
    if "marginal kl" in parts and "jax" in BACKENDS:
        rows += marginal_rows(1024 if quick else 65_536)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in (*BACKENDS, "keras", "numpy"))
    facts = {"machine": machine(), "versions": f"Python {platform.python_version()}, {versions}"}
    facts["date"] = datetime.date.today().isoformat()
    rows = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in (row | facts).items()} for row in rows]
    for row in rows:
        row["data"] = "random codes" if row["what"] == "marginal kl" else f"{len(x)} rows, {source}"
    save(rows, out, parts)


def save(rows, out, parts):
    """Write both tables; the parts that were not measured now stay as they are."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / "results.csv").exists():
        with open(out / "results.csv") as file:
            rows += [row for row in csv.DictReader(file) if row["what"] not in parts]
    rows.sort(key=lambda row: PARTS.index(row["what"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, "machine", "versions", "date", "data"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(out / "results.csv", text.getvalue())
    write(out / "results.md", markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    BEGIN = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 random rows and one round: does it run? The figures mean nothing")
    parser.add_argument("--out", type=Path, help="folder of results.csv and results.md (default: benchmarks; with --quick: build)")
    parser.add_argument("--only", choices=PARTS, help="measure one part, and keep the others of the table that is there")
    options = parser.parse_args()
    main(options.quick, options.out or ROOT / ("build" if options.quick else "benchmarks"), [options.only] if options.only else PARTS)
