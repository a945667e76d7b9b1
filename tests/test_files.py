"""Checkpoints that know what they belong to, files that are never half written, two processes at once."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import icvae
from icvae import files, training
from icvae.estimators import MixtureMarginal, PenalisedCVAE
from icvae.training import SETTINGS, build_model, load_or_train, train

RNG = np.random.default_rng(0)
X = RNG.random((60, 6)).astype("float32")
C = np.eye(3, dtype="float32")[RNG.integers(0, 3, 60)]


def parts(activation="relu", hidden=(8,)):
    icvae.set_seed(0)
    return icvae.build_encoder(6, 2, hidden, activation), icvae.build_decoder(2, 3, 6, (8,))


MODELS = {
    "ICVAE": lambda: icvae.ICVAE(*parts(), lam=0.1, seed=0),
    "lam": lambda: icvae.ICVAE(*parts(), lam=5.0, seed=0),
    "seed": lambda: icvae.ICVAE(*parts(), lam=0.1, seed=1),
    "tanh": lambda: icvae.ICVAE(*parts("tanh"), lam=0.1, seed=0),
    "width": lambda: icvae.ICVAE(*parts(hidden=(9,)), lam=0.1, seed=0),
    "CVAE": lambda: icvae.CVAE(*parts(), seed=0),
    "VAE": lambda: icvae.VAE(*parts(), seed=0),
    "penalised": lambda: PenalisedCVAE(*parts(), {"mmd": 1.0}, seed=0),
    "marginal": lambda: PenalisedCVAE(*parts(), {"learned": 1.0}, marginal=MixtureMarginal(4), seed=0),
}


def test_a_checkpoint_of_another_model_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "part.npz"
    train(MODELS["ICVAE"](), X, C, epochs=2, checkpoint=path)
    stored = path.read_bytes()
    named = {"lam": "weight of kl_marginal: 0.1 there, 5.0 here", "seed": "seed: 0 there, 1 here", "tanh": "activation=tanh"}
    named |= {"width": "units=9", "CVAE": "class: ICVAE there, CVAE here", "VAE": "class", "penalised": "class", "marginal": "class"}
    for name, message in named.items():
        with pytest.raises(ValueError, match=message):
            train(MODELS[name](), X, C, epochs=2, checkpoint=path)
    for change in ({"epochs": 3}, {"batch_size": 20}, {"learning_rate": 1e-4}):
        with pytest.raises(ValueError, match="run: "):
            train(MODELS["ICVAE"](), X, C, **{"epochs": 2, "checkpoint": path, **change})
    with pytest.raises(ValueError, match="data: "):
        train(MODELS["ICVAE"](), X[::-1], C, epochs=2, checkpoint=path)
    assert path.read_bytes() == stored
    assert len(train(MODELS["ICVAE"](), X, C, epochs=2, checkpoint=path)["loss"]) == 2  # its own is taken


@pytest.mark.parametrize("name", ["penalised", "marginal", "CVAE"])
def test_an_own_checkpoint_is_resumed_whatever_names_keras_gives(name, tmp_path, capsys):
    path = tmp_path / "part.npz"
    first = MODELS[name]()
    history = train(first, X, C, epochs=2, checkpoint=path)
    icvae.build_encoder(6, 2)  # moves Keras's numbering of layers
    again = MODELS[name]()
    assert train(again, X, C, epochs=2, checkpoint=path) == history and "resuming after epoch 2" in capsys.readouterr().out
    for a, b in zip(first.weights, again.weights, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


SCRIPT = """
import numpy as np, icvae
from icvae.training import SETTINGS, load_or_train
x = np.random.default_rng(0).random((60, 6)).astype("float32"); c = np.eye(3, dtype="float32")[np.arange(60) % 3]
load_or_train("twice", {**SETTINGS, "epochs": 12, "z_dim": 2}, (x, c), (x, c))
"""


def test_two_processes_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ICVAE_DATA_DIR", str(tmp_path))
    both = [subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
    (stored,) = (tmp_path / "trained").iterdir()  # no temporary file, no checkpoint is left
    assert len(files.load_state(stored)["history"]["loss"]) == 12


def test_a_folder_that_cannot_be_written_to_is_named_before_training(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()  # a file where a folder should be: nobody, not even root, can write below it
    monkeypatch.setattr(training, "data_dir", lambda: blocked)
    monkeypatch.setattr(keras.Model, "fit", None)
    with pytest.raises(OSError, match="ICVAE_DATA_DIR"):
        load_or_train("blocked", {**SETTINGS, "epochs": 1, "z_dim": 2}, (X, C), (X, C))
    with pytest.raises(OSError, match="ICVAE_DATA_DIR"):
        train(MODELS["CVAE"](), X, C, epochs=1, checkpoint=blocked / "part.npz")


def test_16_bits_only_where_they_suffice(tmp_path):
    usual, large, tiny = (np.array(values, "float32") for values in ([0.1, -2.0], [1e5, 1.0], [1e-4, 1.0]))
    variables = [keras.Variable(a) for a in (usual, large, tiny)]
    files.save_state(tmp_path / "a.npz", variables, {}, short=True)
    with np.load(tmp_path / "a.npz") as stored:
        assert [stored[f"arr_{i}"].dtype.name for i in range(3)] == ["float16", "float32", "float16"]
    fresh = [keras.Variable(np.zeros(2, "float32")) for _ in range(3)]
    files.load_state(tmp_path / "a.npz", fresh)
    for variable, array in zip(fresh, (usual, large, tiny), strict=True):
        assert np.allclose(keras.ops.convert_to_numpy(variable), array, rtol=1e-3)


def test_an_encoder_with_large_variances_survives_storage(tmp_path, monkeypatch):
    monkeypatch.setenv("ICVAE_DATA_DIR", str(tmp_path))
    wide = (X * 5000).astype("float32")

    def build(settings, x_dim, c_dim):
        plain = icvae.build_encoder(x_dim, 2, (8,))
        encoder = keras.Model(plain.input, plain(keras.layers.BatchNormalization(momentum=0.1)(plain.input)))
        return icvae.CVAE(encoder, icvae.build_decoder(2, c_dim, x_dim, (8,)), seed=0)

    settings = {**SETTINGS, "epochs": 2, "z_dim": 2}
    model, _ = load_or_train("wide", settings, (wide, C), (wide, C), build=build)
    moving = next(w for w in model.weights if "moving_variance" in w.path)
    assert np.all(np.isfinite(keras.ops.convert_to_numpy(moving))) and np.max(keras.ops.convert_to_numpy(moving)) > 65_504


def test_nothing_that_is_not_finite_is_stored(tmp_path):
    path = tmp_path / "a.npz"
    files.save_state(path, [keras.Variable(np.ones(2, "float32"))], {"good": True})
    with pytest.raises(ValueError, match="not finite"):
        files.save_state(path, [keras.Variable(np.array([1, np.nan], "float32"))], {})
    assert files.load_state(path) == {"good": True} and len(list(tmp_path.iterdir())) == 1


BAD_TRAINING = {
    "integer c": (lambda: (X, C.argmax(1)), {}, r"np.eye\(3\)\[labels\]"),
    "c (N, 1)": (lambda: (X, C.argmax(1)[:, None]), {}, r"c must have the shape \(N, 3\)"),
    "NaN": (lambda: (np.where(X > 0.99, np.nan, X), C), {}, "x is not finite in row"),
    "held out": (lambda: (X, C), {"held_out": X}, r"held_out must be a pair of arrays, \(x, c\)"),
    "held out width": (lambda: (X, C), {"held_out": (X[:, :3], C)}, r"x must have the shape \(N, 6\)"),
    "epochs": (lambda: (X, C), {"epochs": 0}, "epochs must be a whole number"),
    "batch": (lambda: (X, C), {"batch_size": 2.5}, "batch_size must be a whole number"),
    "rate": (lambda: (X, C), {"learning_rate": -1.0}, "learning_rate must lie between"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_train_names_what_is_wrong_before_anything_is_changed(case, tmp_path, monkeypatch):
    data, options, message = BAD_TRAINING[case]
    monkeypatch.setattr(keras.Model, "fit", None)
    model = MODELS["ICVAE"]()
    with pytest.raises(ValueError, match=message):
        train(model, *data(), **{"checkpoint": tmp_path / "part.npz", **options})
    assert not list(tmp_path.iterdir())


def test_xla_only_where_it_pays():
    small, large = build_model({**SETTINGS, "z_dim": 2}, 20, 3), build_model(SETTINGS, 784, 10)
    short, long = training.worth_compiling(small, 1000, 40), training.worth_compiling(large, 60_000, 40)
    assert (short, long) == {"tensorflow": (False, True), "jax": (True, True), "torch": (False, False)}[keras.backend.backend()]
