"""Layers and models: shapes, seeds, learning, saving, resuming, any (x, c)."""

import inspect
import json

import keras
import numpy as np
import pytest
from keras import ops

import icvae
from icvae import training
from icvae.training import (
    FAST,
    SETTINGS,
    VARIANTS,
    build_model,
    load_or_train,
    load_state,
    save_state,
    settings_for,
    settings_key,
    train,
    training_options,
)


def array(x):
    return ops.convert_to_numpy(x)


def small(model=icvae.ICVAE, x_dim=6, c_dim=3, seed=0, **weights):
    keras.utils.set_random_seed(seed)
    encoder = icvae.build_encoder(x_dim, 2, hidden=(16,))
    return model(encoder, icvae.build_decoder(2, c_dim, x_dim, hidden=(16,)), seed=seed, **weights)


def toy(n=200, seed=0):
    rng = np.random.default_rng(seed)
    c = np.eye(3, dtype="float32")[rng.integers(0, 3, n)]
    return (c @ rng.normal(size=(3, 6)) + rng.normal(size=(n, 6))).astype("float32"), c


def test_set_seed_is_what_keras_does():
    def drawn(seed_all):
        seed_all(5)
        model = icvae.build_encoder(6, 2, hidden=(16,))
        return [array(w) for w in model.weights], np.random.permutation(20)  # noqa: NPY002 (as `fit` shuffles)

    (weights, order), (expected, expected_order) = drawn(icvae.set_seed), drawn(keras.utils.set_random_seed)
    assert all(np.array_equal(w, e) for w, e in zip(weights, expected, strict=True))
    np.testing.assert_array_equal(order, expected_order)


# ---------------------------------------------------------------- layers


def test_sampling_has_the_right_moments_and_repeats_by_seed():
    z_mean, z_log_var = np.full((50_000, 2), 2.0, "float32"), np.full((50_000, 2), np.log(9.0), "float32")
    layer = icvae.Sampling(seed=3)
    z, other = array(layer([z_mean, z_log_var])), array(layer([z_mean, z_log_var]))
    assert np.allclose(z.mean(0), 2, atol=0.07) and np.allclose(z.std(0), 3, atol=0.07)
    assert not np.array_equal(z, other)
    assert np.array_equal(z, array(icvae.Sampling(seed=3)([z_mean, z_log_var])))
    assert icvae.Sampling.from_config(layer.get_config()).seed == 3


def test_sampling_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"z_mean.*z_log_var"):
        icvae.Sampling()([np.zeros((4, 2)), np.zeros((4, 3))])


def test_encoder_and_decoder_shapes_and_activations():
    encoder = icvae.build_encoder(7, 3, hidden=(5,), mean_activation="tanh")
    z_mean, z_log_var = encoder(100 * np.ones((4, 7), "float32"))
    assert tuple(z_mean.shape) == tuple(z_log_var.shape) == (4, 3) and np.max(np.abs(array(z_mean))) <= 1
    decoder = icvae.build_decoder(3, 2, 7, output_activation="sigmoid")
    assert np.all(array(decoder([z_mean, ops.ones((4, 2))])) <= 1)
    default = icvae.build_encoder(784)
    assert [layer.units for layer in default.layers if hasattr(layer, "units")] == [512, 512, 16, 16]
    assert default.get_layer("z_mean").activation is keras.activations.linear


def test_wrong_width_is_refused():
    model, (x, c) = small(), toy(8)
    with pytest.raises(ValueError):
        model.encode(x[:, :5])
    with pytest.raises(ValueError):
        model.decode(np.zeros((8, 2)), c[:, :2])


# ---------------------------------------------------------------- models


def test_predict_is_the_reconstruction_from_the_mean():
    model, (x, c) = small(), toy(20)
    z_mean, z_log_var = model.encode(x)
    assert tuple(z_mean.shape) == tuple(z_log_var.shape) == (20, 2)
    first = model.predict({"x": x, "c": c}, verbose=0)
    assert np.allclose(first, array(model.decode(z_mean, c)), atol=1e-5)
    assert np.array_equal(first, model.predict({"x": x, "c": c}, verbose=0))


def test_decode_takes_numpy_and_tensors_mixed():
    model, (_, c) = small(icvae.VAE), toy(5)
    z = np.zeros((5, 2))
    assert np.allclose(array(model.decode(z, c)), array(model.decode(ops.convert_to_tensor(z), ops.convert_to_tensor(c))))


def test_vae_ignores_c():
    model, (x, c) = small(icvae.VAE), toy(9)
    z = array(model.encode(x)[0])
    assert np.array_equal(array(model.decode(z, c)), array(model.decode(z, c[::-1].copy())))
    cvae = small(icvae.CVAE)
    assert not np.array_equal(array(cvae.decode(z, c)), array(cvae.decode(z, np.roll(c, 1, axis=1))))


def test_loss_is_the_weighted_sum_of_the_terms():
    model, (x, c) = small(beta=0.7, lam=0.4), toy(64)
    model.compile(optimizer="adam")
    logs = model.evaluate({"x": x, "c": c}, batch_size=64, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "recon", "kl_prior", "kl_marginal"}
    assert np.isclose(logs["loss"], 1.4 * logs["recon"] + 0.7 * logs["kl_prior"] + 0.4 * logs["kl_marginal"], rtol=1e-5)
    z_mean, z_log_var = model.encode(x)
    assert np.isclose(logs["kl_marginal"], float(icvae.kl_marginal(z_mean, z_log_var)), rtol=1e-4)
    assert np.isclose(logs["kl_prior"], float(ops.mean(icvae.kl_prior(z_mean, z_log_var))), rtol=1e-4)


def test_terms_add_up_when_the_last_batch_is_smaller():
    model, (x, c) = small(beta=0.5, lam=0.0), toy(33)
    model.compile(optimizer="adam")
    logs = model.evaluate({"x": x, "c": c}, batch_size=32, verbose=0, return_dict=True)
    assert np.isclose(logs["loss"], logs["recon"] + 0.5 * logs["kl_prior"], rtol=1e-5)


def test_regularisers_and_dropout_of_a_custom_encoder_count():
    x, c = toy(64)
    inputs = keras.Input((6,))
    h = keras.layers.Dropout(0.5, seed=0)(keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L2(10.0))(inputs))
    encoder = keras.Model(inputs, [keras.layers.Dense(2)(h), keras.layers.Dense(2)(h)])
    model = icvae.CVAE(encoder, icvae.build_decoder(2, 3, 6, hidden=(16,)), seed=0)
    model.compile(optimizer="adam")
    logs = model.evaluate({"x": x, "c": c}, batch_size=64, verbose=0, return_dict=True)
    penalty = 10 * np.square(array(encoder.layers[1].kernel)).sum()
    assert np.isclose(logs["loss"], logs["recon"] + logs["kl_prior"] + penalty, rtol=1e-4)
    in_training = [array(model.encode(x, training=True)[0]) for _ in range(2)]
    assert not np.array_equal(*in_training) and np.array_equal(array(model.encode(x)[0]), array(model.encode(x)[0]))


def test_lam_zero_is_the_cvae():
    x, c = toy(32)
    assert float(small(lam=0.0).compute_loss({"x": x, "c": c})) == float(small(icvae.CVAE).compute_loss({"x": x, "c": c}))


@pytest.mark.parametrize("weights", [{"beta": -1}, {"lam": -0.1}, {"beta": float("nan")}])
def test_bad_weights(weights):
    with pytest.raises(ValueError, match=next(iter(weights))):
        small(**weights)


@pytest.mark.parametrize("model", [icvae.VAE, icvae.CVAE, icvae.ICVAE])
def test_training_lowers_every_model(model):
    x, c = toy()
    history = train(small(model), x, c, (x, c), epochs=6, batch_size=32)
    assert history["loss"][-1] < history["loss"][0] and len(history["val_loss"]) == 6
    assert np.all(np.isfinite(np.array(list(history.values()))))


def test_continuous_c_and_batches_that_do_not_divide():
    x, _ = toy(101)
    history = train(small(c_dim=1), x, x[:, :1], epochs=2, batch_size=32)
    assert len(history["kl_marginal"]) == 2 and np.all(np.isfinite(history["kl_marginal"]))


@pytest.mark.parametrize("shapes", [((10, 6), (9, 3)), ((10,), (10, 3)), ((0, 6), (0, 3))])
def test_train_refuses_wrong_shapes(shapes):
    with pytest.raises(ValueError, match=r"rows|shape"):
        train(small(), np.zeros(shapes[0], "float32"), np.zeros(shapes[1], "float32"))


def test_invariance_term_lowers_information():
    """On toy data: more weight on the marginal KL, less information in the code."""
    x, c = toy(400)
    information = []
    for lam in (0.0, 3.0):
        model = small(lam=lam, beta=0.1)
        train(model, x, c, epochs=40, batch_size=50, learning_rate=1e-2)
        information.append(icvae.mutual_information(*model.encode(x))[0])
    assert information[1] < information[0] - 0.2


# ---------------------------------------------------------------- saving, resuming


@pytest.mark.parametrize("model", [icvae.VAE, icvae.CVAE, icvae.ICVAE])
def test_save_and_load_a_whole_model(tmp_path, model):
    original, (x, c) = small(model, beta=0.3), toy(10)
    original.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is model and dict(loaded.term_weights) == dict(original.term_weights)
    inputs = {"x": x, "c": c}
    assert np.array_equal(loaded.predict(inputs, verbose=0), original.predict(inputs, verbose=0))


def test_state_round_trip(tmp_path):
    model, other = small(seed=0), small(seed=1)
    save_state(tmp_path / "s.npz", model.weights, {"note": "ü"})
    assert load_state(tmp_path / "s.npz", other.weights) == {"note": "ü"}
    assert all(np.array_equal(array(a), array(b)) for a, b in zip(model.weights, other.weights, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 100])
def test_damaged_state_is_refused(tmp_path, damage):
    path = tmp_path / "s.npz"
    save_state(path, small().weights, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged"):
        load_state(path, small().weights)


def test_state_of_another_model_is_refused(tmp_path):
    save_state(tmp_path / "s.npz", small().weights, {})
    model = small(x_dim=7)
    before = [array(w) for w in model.weights]
    with pytest.raises(ValueError, match="shapes"):
        load_state(tmp_path / "s.npz", model.weights)
    assert all(np.array_equal(a, array(w)) for a, w in zip(before, model.weights, strict=True))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "s.npz"
    save_state(path, small().weights, {"version": 1})
    monkeypatch.setattr(np, "savez", lambda file, *a, **k: (file.write(b"half"), (_ for _ in ()).throw(OSError("disk full")))[1])
    with pytest.raises(OSError):
        list(save_state(path, small().weights, {"version": 2}) or [])
    monkeypatch.undo()
    assert load_state(path) == {"version": 1}


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


def test_interrupt_and_resume(tmp_path, monkeypatch, capsys):
    (x, c), path = toy(), tmp_path / "part.npz"
    options = {"epochs": 6, "batch_size": 32, "checkpoint": path}
    with monkeypatch.context() as patch:
        patch.setattr(training, "Progress", Interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(small(), x, c, **options)
    stopped = load_state(path)["history"]
    assert len(stopped["loss"]) == 3

    model = small()
    model.encoder.set_weights([w + 1 for w in model.encoder.get_weights()])  # its own initial weights must not matter
    history = train(model, x, c, **options)
    assert "resuming after epoch 3" in capsys.readouterr().out
    assert history["loss"][:3] == stopped["loss"] and len(history["loss"]) == 6
    assert history["loss"][3] < stopped["loss"][0]
    steps = 6 * -(-len(x) // 32)
    assert int(model.optimizer.iterations) == steps  # the schedule went on where it was

    assert train(small(), x, c, **options)["loss"] == history["loss"]  # nothing left to do
    for other in ({"x": x + 1, "c": c}, {"x": x, "c": c[:, ::-1]}, {"x": x, "c": c, "epochs": 7}):
        with pytest.raises(ValueError, match="another training"):
            train(small(), **{**options, **other})


def test_the_defaults_of_train_are_the_fast_settings():
    defaults = {name: p.default for name, p in inspect.signature(train).parameters.items()}
    assert {name: defaults[name] for name in training_options(FAST)} == training_options(FAST)


def test_betas_and_initializer_of_the_settings_are_used():
    x, c = toy(64)
    usual, fast = (settings | {"output_activation": None} for settings in (SETTINGS, FAST))
    for settings, betas, spread in ((usual, (0.9, 0.999), 2 / (512 + 512)), (fast | {"initializer": "he_normal"}, (0.8, 0.99), 2 / 512)):
        model = build_model(settings, 6, 3)
        assert np.isclose(np.var(array(model.encoder.layers[2].kernel)), spread, rtol=0.05)
        train(model, x, c, **training_options(settings | {"epochs": 1}))
        assert (model.optimizer.beta_1, model.optimizer.beta_2) == betas


def test_load_or_train(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ICVAE_DATA_DIR", str(tmp_path))
    x, c = toy(64)
    settings = {**SETTINGS, "epochs": 2, "batch_size": 32, "z_dim": 2, "output_activation": None}
    first, history = load_or_train("toy", settings, (x, c), (x, c))
    assert "training, 2 epochs" in capsys.readouterr().out
    second, again = load_or_train("toy", settings, (x, c), (x, c))
    assert "loaded" in capsys.readouterr().out and again == history
    assert all(np.array_equal(array(a), array(b)) for a, b in zip(first.weights, second.weights, strict=True))
    assert len(list((tmp_path / "trained").iterdir())) == 1  # no checkpoint, no temporary file

    for changed, data in (({**settings, "beta": 2.0}, (x, c)), (settings, (x + 1, c)), (settings, (x, c[:, ::-1]))):
        load_or_train("toy", changed, data, data)
        assert "training" in capsys.readouterr().out  # other settings or other data are never mixed up
    load_or_train("toy", settings, (x, c), (x, c), retrain=True)
    assert "training" in capsys.readouterr().out


def test_settings_key_depends_on_settings_and_data():
    x, c, settings = np.ones((3, 2), "float32"), np.eye(3, dtype="float32"), {"a": 1, "b": 2}
    assert settings_key(settings, x, c) == settings_key({"b": 2, "a": 1}, x, c)
    others = [settings_key({**settings, "a": 2}, x, c), settings_key(settings, 2 * x, c), settings_key(settings, x, 2 * c)]
    assert len({settings_key(settings, x, c), *others}) == 4


@pytest.mark.parametrize("name", VARIANTS)
def test_pretrained_models(root, name):
    model = icvae.load_pretrained(name)
    meta = load_state(root / "data" / "weights" / f"{name}.npz")
    assert meta["settings"] == settings_for(name, 60_000) and meta["x_dim"] == 784
    assert len(meta["history"]["val_loss"]) == meta["settings"]["epochs"]
    z_mean, _ = model.encode(np.zeros((2, 784), "float32"))
    assert tuple(z_mean.shape) == (2, meta["settings"]["z_dim"])
    assert np.all(np.isfinite(array(model.decode(z_mean, np.eye(10, dtype="float32")[:2]))))


def test_unknown_pretrained_model():
    with pytest.raises(ValueError, match=r"cvae.*icvae"):
        icvae.load_pretrained("gan")


def test_settings_are_plain_data():
    assert json.loads(json.dumps(SETTINGS)) == SETTINGS
    assert settings_for("icvae", 1000)["epochs"] > settings_for("icvae", 60_000)["epochs"]


def test_build_model_repeats_by_seed():
    models = [build_model({**SETTINGS, "seed": seed}, 6, 3) for seed in (1, 1, 2)]
    kernels = [array(model.weights[0]) for model in models]
    assert np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[0], kernels[2])


def test_active_units():
    z_mean = np.random.default_rng(0).normal(size=(500, 3)) * np.array([1.0, 0.05, 0.3])
    assert icvae.active_units(z_mean) == 2
