"""Probes, remapping and the frontier on data whose answers are known."""

import json

import keras
import numpy as np
import pytest

import icvae
from icvae import evaluation
from icvae.evaluation import frontier, labels_of, over_seeds, sample_codes, summary, train_classifier
from icvae.tables import read_rows
from icvae.training import SETTINGS


def codes(shift, n=1500, classes=4, seed=0):
    """Codes whose class moves the mean by `shift`."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    z = rng.normal(size=(n, 3))
    z[:, 0] += shift * y
    return z, np.eye(classes)[y]


def test_probes_find_nothing_where_nothing_is():
    found = icvae.probe_leakage(*codes(0), *codes(0, seed=1))
    assert found["chance"] < 0.3 and found["strongest"] < found["chance"] + 0.06
    assert found["strongest"] == max(found[name] for name in evaluation.probe_battery())


def test_every_probe_finds_what_is_plain():
    found = icvae.probe_leakage(*codes(8), *codes(8, seed=1))
    probes = {"linear", "mlp", "deep mlp", "neighbours", "trees"}
    assert set(found) == probes | {"chance", "strongest", "balanced", "balanced_error", "auc", "auc_error", "readers", "notes"}
    assert min(found[name] for name in probes) > 0.95


def test_a_linear_probe_misses_what_others_find():
    """The class is the radius: no linear rule reads it."""
    rng = np.random.default_rng(0)

    def rings(n):
        y, angle = rng.integers(0, 2, n), rng.uniform(0, 2 * np.pi, n)
        radius = 1 + 2 * y + 0.1 * rng.normal(size=n)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), np.eye(2)[y]

    found = icvae.probe_leakage(*rings(1500), *rings(1000))
    assert found["linear"] < 0.65 and found["neighbours"] > 0.95 and found["mlp"] > 0.95


def test_probe_scores_held_out_codes_only():
    """Labels that are pure noise can be learnt by heart, but not predicted."""
    z, c = codes(0)
    assert icvae.probe_leakage(z, np.random.default_rng(3).permutation(c), *codes(0, seed=1))["strongest"] < 0.35


@pytest.mark.parametrize("c", [np.arange(4), np.full((4, 2), 0.5), np.ones((4, 2)), np.zeros((4, 2))])
def test_labels_must_be_one_hot(c):
    with pytest.raises(ValueError, match="one-hot"):
        labels_of(c)


def test_probe_refuses_wrong_shapes():
    z, c = codes(0, n=30)
    for bad in ((z[:20], c, z, c), (z, c, z[:, :2], c), (z, c, z[:5], c), (z[:, 0], c, z, c)):
        with pytest.raises(ValueError, match="z_train"):
            icvae.probe_leakage(*bad)


def test_sample_codes():
    z = sample_codes(np.full((20_000, 1), 5.0), np.full((20_000, 1), np.log(4.0)), seed=1)
    assert abs(z.mean() - 5) < 0.06 and abs(z.std() - 2) < 0.05
    assert np.array_equal(z[:3], sample_codes(np.full((20_000, 1), 5.0), np.full((20_000, 1), np.log(4.0)), seed=1)[:3])


class Painter(keras.Model):
    """A 'model' with a known answer: it obeys the requested class, or repeats what it was given."""

    def __init__(self, obey):
        super().__init__()
        self.obey = obey
        self.encoder = icvae.build_encoder(4, 4, hidden=())
        self.encoder.get_layer("z_mean").set_weights([np.eye(4), np.zeros(4)])

    def decode(self, z, c):
        return c if self.obey else z


@pytest.mark.parametrize(("obey", "expected"), [(True, 1.0), (False, 0.25)])
def test_remap_accuracy(obey, expected):
    x = np.eye(4, dtype="float32")[np.arange(200) % 4]
    classifier = train_classifier(x + 0.01 * np.random.default_rng(0).normal(size=x.shape), x)
    assert icvae.remap_accuracy(Painter(obey), classifier, x, 4) == expected


def small_data(n=120):
    rng = np.random.default_rng(0)
    c = np.eye(3, dtype="float32")[rng.integers(0, 3, n)]
    return ((c @ rng.normal(size=(3, 5)) + rng.normal(size=(n, 5))).astype("float32"), c)


def test_frontier_computes_caches_and_resumes(tmp_path, monkeypatch):
    settings = {**SETTINGS, "epochs": 1, "z_dim": 2, "output_activation": None}
    runs = [{**variant, "seed": seed} for seed in (0, 1) for variant in ({"model": "CVAE", "beta": 1.0}, {"model": "ICVAE", "lam": 0.5})]
    monkeypatch.setenv("ICVAE_DATA_DIR", str(tmp_path))
    path, data, calls = tmp_path / "trained" / "here.json", small_data(), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluation.evaluate(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        frontier("here", runs, settings, data, data, recompute=True, evaluate=counted)
    assert len(json.loads(path.read_text())["rows"]) == 2
    with pytest.raises(ValueError, match="2 rows"):
        read_rows(path, runs, settings)

    rows = frontier("here", runs, settings, data, data, recompute=True, evaluate=counted)
    assert len(calls) == 5 and len(rows) == 4  # two before, one interrupted, two after
    assert [(row["model"], row["seed"]) for row in rows] == [("CVAE", 0), ("ICVAE", 0), ("CVAE", 1), ("ICVAE", 1)]
    assert all({"recon", "recon z", "information", "leak linear", "leak strongest", "lower", "upper", "remap"} <= set(row) for row in rows)
    monkeypatch.setattr(evaluation, "train_classifier", None)  # nothing left to do: nothing is trained
    assert frontier("here", runs, settings, data, data, recompute=True, evaluate=counted) == rows and len(calls) == 5
    assert read_rows(path, runs, settings) == rows
    with pytest.raises(ValueError, match="other settings"):
        frontier("here", runs, {**settings, "beta": 9.0}, data, data, recompute=True, evaluate=counted)
    with pytest.raises(ValueError, match="settings"):
        read_rows(path, runs, {**settings, "beta": 9.0})
    with pytest.raises(ValueError, match="is expected"):
        read_rows(path, runs[::-1], settings)


def test_rows_of_the_repository_are_read(root):
    stored = json.loads((root / "data" / "frontier.json").read_text())
    runs = [{key: row[key] for key in ("model", "seed")} for row in stored["rows"]]
    assert frontier("frontier", runs, stored["settings"], small_data(), small_data()) == stored["rows"]
    with pytest.raises(ValueError, match="rows with the settings"):
        frontier("frontier", runs[1:], stored["settings"], small_data(), small_data())


def test_frontier_builds_other_models(tmp_path, monkeypatch):
    built, settings = [], {**SETTINGS, "epochs": 1, "z_dim": 2, "output_activation": None}

    def build(run, x_dim, c_dim):
        built.append((run["beta"], x_dim, c_dim))
        return icvae.training.build_model(run, x_dim, c_dim)

    monkeypatch.setenv("ICVAE_DATA_DIR", str(tmp_path))
    frontier("here", [{"beta": 3.0, "seed": 0}], settings, small_data(), small_data(), recompute=True, build=build)
    assert built == [(3.0, 5, 3)]


def test_over_seeds_and_summary():
    rows = [{"recon": value} for value in (1.0, 10.0, 3.0, 14.0)]  # two variants, two seeds, seed by seed
    mean, sd = over_seeds(rows, "recon", seeds=2)
    assert np.allclose(mean, [2, 12]) and np.allclose(sd, [np.sqrt(2), np.sqrt(8)])
    lines = summary(rows, ["first", "second"], ["recon"], seeds=2).splitlines()
    assert len(lines) == 3 and lines[1].split() == ["first", "2.000", "(1.414)"] and lines[2].split() == ["second", "12.000", "(2.828)"]


def test_quality_decodes_as_the_model_does():
    """A VAE's decoder is shown zeros in place of c: its error must be that of `predict`, not of its decoder with c."""
    x, c = small_data()
    icvae.set_seed(0)
    model = icvae.VAE(icvae.build_encoder(5, 2, hidden=(8,)), icvae.build_decoder(2, 3, 5, hidden=(8,)), seed=0)
    found = evaluation.quality(model, (x, c), train_classifier(x, c))
    right = np.square(x - model.predict({"x": x, "c": c}, verbose=0)).sum(1).mean()
    wrong = np.square(x - model.decoder.predict([model.encoder.predict(x, verbose=0)[0], c], verbose=0)).sum(1).mean()
    assert np.isclose(found["recon"], right, rtol=1e-5) and not np.isclose(right, wrong, rtol=1e-3)
