"""Tables of comparisons: rows of figures that take hours to compute, kept in JSON files."""

# A row is written as soon as it is finished, so an interrupted computation goes on where it stopped. There is never half a file.
import json
import os
from pathlib import Path

import keras

from .cvae import data_dir
from .files import check_writable, settings_key
from .training import weights_dir


def compute_rows(path, runs, settings, train_data, compute):
    """One row of figures for each run: [{**run, **compute({**settings, **run})}, ...], rounded to 4 digits.

    runs: list of dicts that override `settings`, all of JSON's types. compute: a function from full settings to a dict of floats.
    Each finished row is written to the JSON file `path` at once. Raises ValueError if the file belongs to other runs, other settings
    or other training data (x, c), OSError before anything is computed if the folder can't be written to.
    """
    path, key = Path(path), settings_key({**settings, "runs": runs}, *train_data)
    done = json.loads(path.read_text()) if path.exists() else {"key": key, "settings": settings, "rows": []}
    if done["key"] != key:
        raise ValueError(f"{path} was computed with other settings or data; remove it to compute it anew")
    check_writable(path.parent)
    part = path.with_name(f"{path.stem}.{os.getpid()}.tmp")  # two processes may compute the same table
    for run in runs[len(done["rows"]) :]:
        print(f"run {len(done['rows']) + 1} of {len(runs)}: {run}")
        keras.backend.clear_session()  # frees the previous model
        figures = compute({**settings, **run})
        done["rows"].append({**run, **{name: round(float(value), 4) for name, value in figures.items()}})
        part.write_text(json.dumps(done, indent=1))
        os.replace(part, path)
    return done["rows"]


def read_rows(path, runs, settings):
    """The rows that `compute_rows` left in the file `path`. Raises ValueError if they are of other runs or settings, or too few."""
    done = json.loads(Path(path).read_text())
    if done["settings"] != settings or len(done["rows"]) != len(runs):
        raise ValueError(f"{path} holds {len(done['rows'])} rows with the settings {done['settings']}, not what this call asks for")
    for run, row in zip(runs, done["rows"], strict=True):
        if not run.items() <= row.items():
            raise ValueError(f"{path} holds the row {row} where {run} is expected")
    return done["rows"]


def load_or_compute(name, runs, settings, train_data, compute, recompute=False):
    """The rows of the comparison `name`: of the file that came with the repository, or with `recompute` those of `compute_rows`.

    The file was computed on MNIST, whatever train_data is. New rows go into the folder `trained` of the data folder.
    """
    if recompute:
        return compute_rows(data_dir() / "trained" / f"{name}.json", runs, settings, train_data, compute)
    return read_rows(weights_dir().parent / f"{name}.json", runs, settings)
