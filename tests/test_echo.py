"""The Echo channel against NumPy loops, closed forms and finite differences; its draws, bank, batches, seeds; compiled; saved."""

import json
import math

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.linear_model import LogisticRegression

import icvae
from icvae import evaluation
from icvae.cvae import jit
from icvae.echo import (
    Echo,
    EchoNoise,
    WarmUp,
    build_echo,
    build_echo_encoder,
    draw_neighbours,
    echo_clip,
    echo_codes,
    echo_mean,
    echo_noise,
    echo_of,
    echo_rate,
    echo_settings,
    evaluate_echo,
    fill_bank,
    probe_count,
)
from icvae.evaluation import frontier
from icvae.training import SETTINGS, train

rng = np.random.default_rng(0)


def array(x):
    return ops.convert_to_numpy(x)


def encodings(n=40, d=3, terms=8, seed=0):
    """f and log_s as a layer with that many terms takes them."""
    r = np.random.default_rng(seed)
    log_s = math.log(echo_clip(terms)) - np.logaddexp(0, r.normal(size=(n, d)))
    return np.tanh(r.normal(size=(n, d))).astype("float32"), log_s.astype("float32")


def loop_noise(f, log_s):
    """The definition, from the inside out, in float64: eps = f_0 + s_0 (f_1 + s_1 (f_2 + ...))."""
    out = np.zeros((f.shape[0], f.shape[2]))
    for term in reversed(range(f.shape[1])):
        out = f[:, term] + np.exp(log_s[:, term]) * out
    return out


# ---------------------------------------------------------------- the sum and the rate


def test_noise_is_the_nested_sum():
    f, log_s = rng.uniform(-1, 1, (5, 30, 3)), -rng.exponential(size=(5, 30, 3))
    assert np.allclose(array(echo_noise(f, log_s)), loop_noise(f, log_s), atol=1e-5)
    assert np.allclose(array(echo_noise(f[:, :1], log_s[:, :1])), f[:, 0])


def test_noise_of_named_neighbours_skips_the_missing():
    f, log_s = rng.uniform(-1, 1, (6, 2)), -rng.exponential(size=(6, 2))
    index, exists = np.array([[1, 2, 0], [5, 4, 3]]), np.array([[True, True, True], [True, True, False]])
    expected = np.concatenate([loop_noise(f[index[:1]], log_s[index[:1]]), loop_noise(f[index[1:, :2]], log_s[index[1:, :2]])])
    assert np.allclose(array(echo_of(f, log_s, index, exists)), expected, atol=1e-6)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 3)), ((4, 3, 2), (4, 3)), ((4, 3, 2), (4, 2, 2)), ((4, 3, 2), (4, 3, 1))])
def test_noise_refuses_wrong_shapes(shapes):
    with pytest.raises(ValueError, match="terms, z_dim"):
        echo_noise(*map(np.ones, shapes))


def test_rate():
    log_s = np.log([[0.5, 0.25], [0.1, 0.9]])
    assert np.allclose(array(echo_rate(log_s)), [math.log(8), -math.log(0.09)])
    with pytest.raises(ValueError, match="batch, z_dim"):
        echo_rate(np.zeros(3))


@pytest.mark.parametrize(("terms", "expected"), [(99, 0.8359), (64, 0.7622)])
def test_clip(terms, expected):
    r = echo_clip(terms)
    assert abs(r - expected) < 5e-5
    assert r**terms / (1 - r) <= 2**-23 < (r + 1e-6) ** terms / (1 - r - 1e-6)


def test_clip_knows_bound_and_tolerance():
    assert echo_clip(50, bound=10) < echo_clip(50) < echo_clip(50, tolerance=1e-3) < echo_clip(100, tolerance=1e-3) < 1
    for bad in ({"terms": 0}, {"terms": -3}, {"terms": 2.5}, {"terms": 9, "tolerance": 0}, {"terms": 9, "bound": -1}):
        with pytest.raises(ValueError, match="terms"):
            echo_clip(**bad)


@pytest.mark.parametrize("terms", [4, 16, 99])
def test_truncation_error_is_within_its_bound(terms):
    r = 0.8
    f, log_s = rng.uniform(-1, 1, (50, 300, 2)), np.log(rng.uniform(0, r, (50, 300, 2)))
    f[0], log_s[0] = 1, math.log(r)  # the worst case, for which the bound is tight
    error = np.abs(loop_noise(f, log_s) - loop_noise(f[:, :terms], log_s[:, :terms]))
    bound = r**terms / (1 - r)
    assert error.max() <= bound * (1 + 1e-9) and error[0].max() > 0.999 * bound


def test_rate_of_a_gaussian_is_exact():
    """f(x) = x Gaussian, s constant per dimension, correlated: all is Gaussian, and determinants of covariances give I(x;z)."""
    s, n, terms = np.array([0.5, 0.8]), 40_000, 90
    x = np.random.default_rng(1).normal(size=(n, terms + 1, 2)) @ np.linalg.cholesky([[1, 0.7], [0.7, 1]]).T
    log_s = np.broadcast_to(np.log(s), (n, terms, 2))
    noise = s * array(echo_noise(x[:, 1:].astype("float32"), log_s.astype("float32"))).astype("float64")
    measured = 0.5 * np.log(np.linalg.det(np.cov((x[:, 0] + noise).T)) / np.linalg.det(np.cov(noise.T)))
    assert abs(measured - float(echo_rate(np.log(s)[None])[0])) < 0.02


def test_layer_rate_by_regression():
    """The same through the layer itself, with its own draws: I(x;z) = -log(1 - corr^2) / 2 for Gaussian x and z."""
    layer = EchoNoise(terms=99, bank_size=4000, seed=0)
    x = np.clip(0.2 * np.random.default_rng(0).normal(size=(8000, 1)), -1, 1).astype("float32")
    log_s = np.full_like(x, math.log(0.6))
    layer.build([(None, 1)] * 2)
    layer.fill(x[4000:], log_s[4000:])
    z = np.concatenate([array(layer([x[i : i + 500], log_s[i : i + 500]])) for i in range(0, 4000, 500)])
    assert abs(-0.5 * math.log(1 - np.corrcoef(x[:4000, 0], z[:, 0])[0, 1] ** 2) + math.log(0.6)) < 0.05


# ---------------------------------------------------------------- gradients


def gradients(function, *inputs):
    """Gradients of the sum of function(*inputs) in all inputs, by the backend at hand."""
    backend, inputs = keras.backend.backend(), [np.asarray(t, "float32") for t in inputs]
    if backend == "tensorflow":
        import tensorflow as tf

        leaves = [tf.constant(t) for t in inputs]
        with tf.GradientTape() as tape:
            tape.watch(leaves)
            value = ops.sum(function(*leaves))
        return [array(ops.convert_to_tensor(g)) for g in tape.gradient(value, leaves)]
    if backend == "jax":
        import jax

        return [array(g) for g in jax.grad(lambda *t: ops.sum(function(*t)), argnums=tuple(range(len(inputs))))(*inputs)]
    import torch

    leaves = [torch.tensor(t, requires_grad=True) for t in inputs]
    return [array(g) for g in torch.autograd.grad(ops.sum(function(*leaves)), leaves)]


def test_gradients_flow_through_code_and_neighbours():
    """Against central differences of a NumPy loop in float64, with the neighbours held fixed."""
    f, log_s = (t.astype("float64") for t in encodings(7, 2))
    index, exists = (array(t) for t in draw_neighbours(7, 5, 7, others=7, seed=3))
    weights = rng.normal(size=(7, 2))

    def code(f, log_s):
        return ops.convert_to_tensor(weights.astype("float32")) * (f + ops.exp(log_s) * echo_of(f, log_s, index, exists))

    def reference(f, log_s):
        return float(np.sum(weights * (f + np.exp(log_s) * loop_noise(f[index], log_s[index]))))

    for which, found in enumerate(gradients(code, f, log_s)):
        for position in np.ndindex(7, 2):
            step = np.zeros((7, 2))
            step[position] = 1e-6
            high, low = ([a + sign * step if i == which else a for i, a in enumerate((f, log_s))] for sign in (1, -1))
            assert abs(found[position] - (reference(*high) - reference(*low)) / 2e-6) < 2e-4


def test_gradients_reach_the_inputs_of_the_layer():
    f, log_s = encodings(20)
    for training in (True, False):
        layer = EchoNoise(terms=8, bank_size=30, seed=0)
        layer.build([(None, 3)] * 2)
        layer.fill(f, log_s)
        grad_f, grad_s = gradients(lambda a, b, layer=layer, training=training: layer([a, b], training=training), f, log_s)
        assert np.all(np.isfinite(grad_f)) and np.any(grad_s != 0)
        assert np.allclose(grad_f, 1) is not training  # in training f is a neighbour too


# ---------------------------------------------------------------- draws


def test_draws_are_of_others_and_different():
    index, exists = (array(t) for t in draw_neighbours(50, 49, 50, others=50, seed=0))
    assert exists.all()
    assert np.array_equal(np.sort(index, 1), [np.delete(np.arange(50), i) for i in range(50)])
    index = array(draw_neighbours(50, 9, 50, others=50, seed=1)[0])
    assert not any(i in line or len(set(line)) < 9 for i, line in enumerate(index.tolist()))
    assert len({tuple(line) for line in index.tolist()}) == 50  # rows differ


def test_draws_are_uniform_in_every_place():
    """Each of the other rows stands at each place equally often, and so does each ordered pair at the first two places."""
    rows, terms, times = 5, 3, 1500
    seed = keras.random.SeedGenerator(0)
    drawn = np.stack([array(draw_neighbours(rows, terms, rows, others=rows, seed=seed)[0]) for _ in range(times)])
    for row in range(rows):
        for place in range(terms):
            counts = np.delete(np.bincount(drawn[:, row, place], minlength=rows), row)
            assert np.sum((counts - times / 4) ** 2 / (times / 4)) < 21.1  # chi-square, 3 degrees of freedom, p = 1e-4
    pairs = np.bincount(drawn[:, 0, 0] * rows + drawn[:, 0, 1], minlength=rows**2)
    pairs = pairs[pairs > 0]
    assert len(pairs) == 12 and np.sum((pairs - times / 12) ** 2 / (times / 12)) < 37.4  # 11 degrees of freedom, p = 1e-4


def test_draws_are_fresh_and_repeat_by_seed():
    seed, same = keras.random.SeedGenerator(7), keras.random.SeedGenerator(7)
    first, second = (array(draw_neighbours(30, 5, 30, others=30, seed=seed)[0]) for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, array(draw_neighbours(30, 5, 30, others=30, seed=same)[0]))


def test_draws_from_a_bank_leave_out_what_is_not_there():
    index, exists = (array(t) for t in draw_neighbours(200, 6, 40, present=10, seed=0))
    assert exists.all() and index.max() == 9 and index.min() == 0
    index, exists = (array(t) for t in draw_neighbours(200, 6, 40, present=4, seed=0))
    assert np.array_equal(exists, np.tile(np.arange(6) < 4, (200, 1)))


def test_draws_take_the_batch_first_and_then_the_bank():
    index, exists = (array(t) for t in draw_neighbours(4, 8, 4 + 8, others=4, present=4 + 6, seed=0))
    assert exists.all()
    assert np.all(index[:, :3] < 4) and np.all((index[:, 3:] >= 4) & (index[:, 3:] < 10))
    assert not any(i in line for i, line in enumerate(index.tolist()))


# ---------------------------------------------------------------- the layer


def filled_layer(f, log_s, seed=0, terms=8, bank_size=60):
    layer = EchoNoise(terms=terms, bank_size=bank_size, seed=seed)
    layer.build([(None, f.shape[1])] * 2)
    layer.fill(f, log_s)
    return layer


def test_layer_repeats_by_seed():
    f, log_s = encodings(60)
    for training in (True, False):
        first, second = (filled_layer(f, log_s, seed) for seed in (5, 5))
        z = array(first([f, log_s], training=training))
        assert np.array_equal(z, array(second([f, log_s], training=training)))
        assert not np.array_equal(z, array(first([f, log_s], training=training)))
        assert not np.array_equal(z, array(filled_layer(f, log_s, 6)([f, log_s], training=training)))


def test_code_at_test_time_depends_on_the_own_row_alone():
    """The same noise whatever the other rows of the batch are."""
    (f, log_s), (g, log_t) = encodings(60), encodings(5, seed=9)
    z = array(filled_layer(f, log_s)([g, log_t]))
    g2, log_t2 = g.copy(), log_t.copy()
    g2[1:], log_t2[1:] = -0.5, -3.0
    assert np.array_equal(z[0], array(filled_layer(f, log_s)([g2, log_t2]))[0])
    assert not np.array_equal(z[1], array(filled_layer(f, log_s)([g2, log_t2]))[1])


def test_noise_does_not_depend_on_the_own_row_in_training():
    f, log_s = encodings(60, terms=40)
    other = f.copy()
    other[4] = -other[4]
    layers = [filled_layer(*encodings(90, terms=40), terms=40, bank_size=90) for _ in range(2)]
    noises = [array(layer([g, log_s], training=True)) - g for layer, g in zip(layers, (f, other), strict=True)]
    assert np.allclose(noises[0][4], noises[1][4], atol=1e-6)
    assert not np.allclose(noises[0], noises[1], atol=1e-3)  # for other rows, row 4 is a neighbour


def test_bank_holds_the_last_training_rows():
    layer = EchoNoise(terms=4, bank_size=25, seed=0)
    f, log_s = encodings(60, terms=4)
    for start in (0, 20, 40):
        layer([f[start : start + 20], log_s[start : start + 20]], training=True)
    assert int(array(layer.filled)) == 25
    assert np.array_equal(array(layer.f), np.concatenate([f[40:], f[20:25]]))
    assert np.array_equal(array(layer.log_s), np.concatenate([log_s[40:], log_s[20:25]]))
    before = array(layer.f)
    layer([f[:9], log_s[:9]])
    assert np.array_equal(array(layer.f), before)  # not at test time
    assert layer.trainable_weights == []


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 30])
def test_any_batch_size(rows):
    """A batch with too few others takes the rest from the bank: all terms are there, against a loop over what was drawn."""
    f, log_s = encodings(60)
    layer = filled_layer(f, log_s, seed=2)
    g, log_t = encodings(rows, seed=4)
    state = array(layer.seed_generator.state)
    z = array(layer([g, log_t], training=True))
    layer.seed_generator.state.assign(state)
    spare = 0 if rows > 8 else 8
    near_f, near_s = np.concatenate([g, f[:spare]]), np.concatenate([log_t, log_s[:spare]])
    index, exists = (array(t) for t in draw_neighbours(rows, 8, rows + spare, rows, seed=layer.seed_generator))
    assert exists.all() and np.sum(index[0] < rows) == min(8, rows - 1)
    assert np.allclose(z, g + np.exp(log_t) * loop_noise(near_f[index], near_s[index]), atol=1e-5)


def test_empty_bank_gives_nan_and_not_noiseless_codes():
    layer = EchoNoise(terms=8, bank_size=20, seed=0)
    f, log_s = encodings(7)
    assert np.all(np.isnan(array(layer([f, log_s]))))
    layer([f, log_s], training=True)
    assert np.all(np.isnan(array(layer([f, log_s]))))  # 7 of 8
    layer([f, log_s], training=True)
    assert np.all(np.isfinite(array(layer([f, log_s]))))


@pytest.mark.parametrize("terms", [0, -1, 1.5])
def test_bad_number_of_terms(terms):
    with pytest.raises(ValueError, match="whole number of terms"):
        EchoNoise(terms=terms)


def test_bad_bank():
    with pytest.raises(ValueError, match="bank_size must be at least"):
        EchoNoise(terms=99, bank_size=50)
    layer = filled_layer(*encodings(60))
    bad = {"8 or more": encodings(5), "of 3 dimensions": encodings(60, d=2), "batch, z_dim": (np.ones((9, 3)), np.ones(9))}
    for message, given in bad.items():
        with pytest.raises(ValueError, match=message):
            layer.fill(*given)


def test_encodings_out_of_range_are_refused():
    f, log_s = encodings(20)
    layer = filled_layer(f, log_s)
    for bad in ((1.5 * f / np.abs(f).max(), log_s), (f, log_s + 2), (f + np.nan, log_s)):
        for refuse in (layer.fill, lambda f, log_s: layer([f, log_s]), lambda f, log_s: layer([f, log_s], training=True)):
            with pytest.raises(ValueError, match="build_echo_encoder"):
                refuse(*bad)


def test_layer_survives_its_config():
    layer = EchoNoise(terms=9, bank_size=33, seed=4, name="channel")
    copy = EchoNoise.from_config(json.loads(json.dumps(layer.get_config())))
    assert (copy.terms, copy.bank_size, copy.seed, copy.name, copy.clip) == (9, 33, 4, "channel", layer.clip)


# ---------------------------------------------------------------- the model


def small(seed=0, terms=8, bank_size=64, **weights):
    keras.utils.set_random_seed(seed)
    encoder = build_echo_encoder(6, 2, terms, hidden=(16,))
    return Echo(encoder, icvae.build_decoder(2, 3, 6, hidden=(16,)), terms=terms, bank_size=bank_size, seed=seed, **weights)


def toy(n=200, seed=0):
    r = np.random.default_rng(seed)
    c = np.eye(3, dtype="float32")[r.integers(0, 3, n)]
    return (c @ r.normal(size=(3, 6)) + r.normal(size=(n, 6))).astype("float32"), c


def test_loss_is_the_weighted_sum_of_the_terms():
    x, c = toy(50)
    model, twin = small(beta=0.7), small(beta=0.7)
    loss = float(model.compute_loss({"x": x, "c": c}))
    f, log_s = twin.encode(x, training=True)  # normalised over the batch
    x_hat = array(twin.decode(twin.echo([f, log_s], training=True), c))
    assert np.isclose(loss, np.square(x - x_hat).sum(1).mean() + 0.7 * array(echo_rate(log_s)).mean(), rtol=1e-5)
    assert [tracker.name for tracker in model.metrics[:2]] == ["recon", "rate"]


@pytest.mark.parametrize("batch_size", [5, 8, 32, 64])
def test_compiled_training_with_smaller_last_batches(batch_size):
    """200 rows never divide into these batches but for 8 and 5, which are smaller than the terms need."""
    x, c = toy()
    model = small(beta=0.1)
    history = train(model, x, c, (x[:7], c[:7]), epochs=6, batch_size=batch_size, learning_rate=1e-2)
    assert all(np.all(np.isfinite(values)) for values in history.values())
    assert history["loss"][-1] < history["loss"][0]
    assert int(array(model.echo.filled)) == 64


def test_draws_are_fresh_in_the_compiled_step():
    """With a learning rate of zero only the noise changes from epoch to epoch."""
    x, c = toy(64)
    model = small()
    model.compile(keras.optimizers.SGD(0.0), jit_compile=jit())
    recon = model.fit({"x": x, "c": c}, batch_size=64, epochs=4, shuffle=False, verbose=0).history["recon"]
    assert len({round(value, 7) for value in recon}) == 4


def test_fit_repeats_by_seed():
    x, c = toy()
    histories = [train(small(seed=3), x, c, epochs=2, batch_size=64) for _ in range(2)]
    assert histories[0] == histories[1]


def test_bad_weight_and_encoder():
    with pytest.raises(ValueError, match="beta"):
        small(beta=-1.0)
    with pytest.raises(ValueError, match="warm_up"):
        small(warm_up=-1)


def test_warm_up_scales_the_gradient_and_not_the_value():
    layer = WarmUp(4)
    for call in range(6):
        (slope,) = gradients(lambda t: layer(3 * t, training=True), np.float32(2.0))
        assert np.isclose(slope, 3 * min((call + 1) / 4, 1))
    assert float(array(layer(ops.convert_to_tensor(6.0), training=True))) == 6
    assert np.isclose(gradients(lambda t: WarmUp(4)(3 * t), np.float32(2.0))[0], 3)  # not in training
    assert np.isclose(gradients(lambda t: WarmUp()(3 * t, training=True), np.float32(2.0))[0], 3)


def test_rate_weight_lowers_the_rate():
    x, c = toy()
    rates = []
    for beta in (0.01, 3.0):
        model = small(beta=beta)
        rates.append(train(model, x, c, epochs=30, batch_size=50, learning_rate=1e-2)["rate"][-1])
    assert rates[1] < rates[0] - 0.5 and rates[1] > -2 * math.log(model.echo.clip) - 1e-4


def test_encoder_keeps_its_range():
    encoder = build_echo_encoder(6, 4, terms=20, hidden=(5,))
    f, log_s = (array(t) for t in encoder(1000 * rng.normal(size=(300, 6)).astype("float32")))
    assert f.shape == log_s.shape == (300, 4)
    assert np.abs(f).max() <= 1 and log_s.max() <= math.log(echo_clip(20)) + 1e-6 and log_s.max() > -1


def test_mean_of_the_code():
    """The closed form against the mean of many codes; rows of zeros, as in a bank that is not full, don't count."""
    f, log_s = encodings(3000, terms=40, seed=1)
    index, exists = draw_neighbours(3000, 40, 3000, others=3000, seed=0)
    z = f + np.exp(log_s) * array(echo_of(f, log_s, index, exists))
    expected = array(echo_mean(f, log_s))
    assert np.allclose(z.mean(0), expected, atol=0.05)
    assert np.allclose(array(echo_mean(np.pad(f, ((0, 9), (0, 0))), np.pad(log_s, ((0, 9), (0, 0))))), expected, atol=1e-5)


def test_codes_and_prediction():
    x, c = toy()
    model = small()
    with pytest.raises(ValueError, match="bank"):
        echo_codes(model, x)
    fill_bank(model, x)
    z, f, log_s = echo_codes(model, x[:30], batch_size=8)
    assert z.shape == f.shape == log_s.shape == (30, 2) and not np.allclose(z, f)
    assert np.allclose(f, array(model.encode(x[:30])[0]), atol=1e-6)
    mean = f + np.exp(log_s) * array(echo_mean(*model.encode(x[:64])))
    assert np.allclose(model.predict({"x": x[:30], "c": c[:30]}, verbose=0), array(model.decode(mean, c[:30])), atol=1e-4)


def test_save_and_load_a_whole_model(tmp_path):
    x, c = toy()
    model = small(beta=0.3, warm_up=5)
    train(model, x, c, epochs=1, batch_size=64)
    model.save(tmp_path / "echo.keras")
    copy = keras.saving.load_model(tmp_path / "echo.keras")
    assert copy.get_config()["beta"] == 0.3 and (copy.echo.terms, copy.echo.bank_size, copy.warm_up.steps) == (8, 64, 5)
    assert all(np.array_equal(array(a), array(b)) for a, b in zip(copy.weights, model.weights, strict=True))  # the bank too
    assert int(array(copy.echo.filled)) == 64 and np.all(np.isfinite(echo_codes(copy, x)[0]))
    assert np.allclose(copy.predict({"x": x, "c": c}, verbose=0), model.predict({"x": x, "c": c}, verbose=0), atol=1e-6)


@pytest.fixture
def linear_probe(monkeypatch):
    """The other probes are tested with chapter 4."""
    monkeypatch.setattr(evaluation, "probe_battery", lambda *args: {"mlp": (LogisticRegression(), 500)})


class Judge:
    """A classifier that reads class 0 everywhere."""

    def predict(self, images):
        return np.zeros(len(images), int)


def little(**changes):
    settings = {**SETTINGS, "epochs": 2, "z_dim": 2, "output_activation": None, "batch_size": 64}
    return {**echo_settings(settings, 400), "terms": 8, "bank_size": 50, **changes}


def test_evaluate(linear_probe):
    data, model = (toy(400), toy(90, seed=1)), build_echo(little(), 6, 3)
    found = evaluate_echo(model, *data, Judge())
    assert found["remap"] == pytest.approx(1 / 3) and found["leak strongest"] >= found["leak probes"] > 0
    assert found["lower"] >= 0 and "upper" not in found  # an Echo code has no known density
    assert json.loads(json.dumps(found)) == found and all(np.isfinite(value) for value in found.values())
    x, c = data[1]
    f, log_s = (array(t) for t in model.encode(x))
    assert found["information"] == pytest.approx(-log_s.sum(1).mean(), rel=1e-5)
    assert found["recon f"] == pytest.approx(np.square(x - array(model.decode(f, c))).sum(1).mean(), rel=1e-4)
    assert found["recon"] == pytest.approx(np.square(x - model.predict({"x": x, "c": c}, verbose=0)).sum(1).mean(), rel=1e-4)
    bank = array(model.encode(data[0][0][300:350])[0])
    assert np.allclose(array(model.echo.f), bank, atol=1e-6)  # rows that no probe learns from: 300 is three quarters


def test_frontier_computes_and_resumes(tmp_path, linear_probe, monkeypatch):
    monkeypatch.setattr(evaluation, "train_classifier", lambda x, c: Judge())
    monkeypatch.setenv("ICVAE_DATA_DIR", str(tmp_path))
    how = {"recompute": True, "build": build_echo, "evaluate": evaluate_echo}
    runs = [{"beta": beta, "seed": 0} for beta in (0.5, 2.0)]
    rows = frontier("here", runs, little(), toy(400), toy(90, seed=1), **how)
    assert [row["beta"] for row in rows] == [0.5, 2.0] and rows[0]["information"] > 0
    monkeypatch.setattr(evaluation, "train", None)  # would fail if anything were trained again
    assert frontier("here", runs, little(), toy(400), toy(90, seed=1), **how) == rows


def test_settings():
    settings = echo_settings(SETTINGS, 60_000)
    assert json.loads(json.dumps(settings)) == settings and settings["warm_up"] == 40 * 469 // 6
    assert [probe_count(rows) for rows in (60_000, 1437, 30_000)] == [20_000, 1077, 20_000]
