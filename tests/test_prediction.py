"""Invariant prediction: terms, gradients, rotation, scanners, parity, saving and bad input, against independent references."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import integrate, ndimage, stats

import icvae
from icvae import prediction
from icvae.evaluation import parity_bound
from icvae.prediction import (
    AdversarialPredictor,
    InvariantPredictor,
    MMDPredictor,
    Predictor,
    build_head,
    cross_entropy,
    harmonise,
    parity_gap,
    reverse_gradient,
    rotate_images,
    scan_images,
    standardise,
    train_predictor,
)

KINDS = (Predictor, InvariantPredictor, MMDPredictor, AdversarialPredictor)


def array(x):
    return ops.convert_to_numpy(x)


def small(kind, seed=0, **options):
    """A model for x (B, 6), 3 classes of y, 2 of c."""
    keras.utils.set_random_seed(seed)
    encoder, head = icvae.build_encoder(6, 2, hidden=(16,)), build_head(2, 3, (8,))
    if kind is InvariantPredictor:
        return kind(encoder, icvae.build_decoder(2, 2, 6, hidden=(16,)), head, seed=seed, **options)
    return kind(encoder, head, *([build_head(2, 2, (8,))] if kind is AdversarialPredictor else []), seed=seed, **options)


def toy(n=256, seed=0):
    """Two classes of c shift the first column, three of y the second."""
    rng = np.random.default_rng(seed)
    y, c = rng.integers(0, 3, n), rng.integers(0, 2, n)
    x = rng.normal(size=(n, 6))
    x[:, 0] += 2 * c
    x[:, 1] += 3 * y
    return x.astype("float32"), np.eye(3, dtype="float32")[y], np.eye(2, dtype="float32")[c]


def batch(n=256, seed=0):
    return dict(zip("xyc", toy(n, seed), strict=True))


def values(model, inputs):
    """The loss, and the terms that made it."""
    for tracker in model.trackers:
        tracker.reset_state()
    loss = float(model.compute_loss(inputs))
    return loss, {tracker.name: float(tracker.result()) for tracker in model.trackers}


def softmax(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


# ---------------------------------------------------------------- losses


def test_cross_entropy_against_a_loop():
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(30, 4)), rng.integers(0, 4, 30)
    expected = -np.mean([np.log(p[k]) for p, k in zip(softmax(logits), labels, strict=True)])
    assert np.isclose(float(cross_entropy("y", np.eye(4)[labels], ops.convert_to_tensor(logits))), expected, rtol=1e-5)


def test_terms_against_numpy():
    """Each term computed again in float64 from the model's own weights and its own draw of z."""
    inputs = batch(50)
    loss, terms = values(small(InvariantPredictor, beta=0.4, lam=0.3), inputs)
    model = small(InvariantPredictor, beta=0.4, lam=0.3)
    z_mean, z_log_var = (array(t).astype("float64") for t in model.encoder(inputs["x"]))
    z = array(model.sampling([z_mean.astype("float32"), z_log_var.astype("float32")]))
    p = softmax(array(model.predictor(z)).astype("float64"))
    x_hat = array(model.decoder([z, inputs["c"]])).astype("float64")
    total = np.exp(z_log_var).mean(0) + z_mean.var(0)
    expected = {
        "prediction": -np.mean(np.log((p * inputs["y"]).sum(1))),
        "recon": np.mean(((inputs["x"] - x_hat) ** 2).sum(1)),
        "rate": 0.5 * np.sum(np.log(total) - z_log_var.mean(0)),
    }
    assert terms.keys() == expected.keys() and all(np.isclose(terms[name], expected[name], rtol=1e-4) for name in terms)
    assert np.isclose(loss, expected["prediction"] + 0.3 * expected["recon"] + 0.7 * expected["rate"], rtol=1e-4)


def test_predictor_does_not_see_c():
    model, inputs = small(InvariantPredictor), batch(20)
    other = {**inputs, "c": 1 - inputs["c"]}
    assert np.array_equal(model.predict(inputs, verbose=0), model.predict(other, verbose=0))
    assert values(small(InvariantPredictor), inputs)[1]["prediction"] == values(small(InvariantPredictor), other)[1]["prediction"]


def test_without_weights_every_method_is_the_plain_classifier():
    expected = values(small(Predictor), batch())[0]
    for kind, off in ((InvariantPredictor, {"beta": 0, "lam": 0}), (MMDPredictor, {"strength": 0})):
        assert np.isclose(values(small(kind, **off), batch())[0], expected, rtol=1e-6)
    loss, terms = values(small(AdversarialPredictor, strength=0), batch())
    assert np.isclose(terms["prediction"], expected, rtol=1e-6) and np.isclose(loss, sum(terms.values()), rtol=1e-6)


def mmd_by_loops(z, y, scales=(0.2, 0.5, 1.0, 2.0)):
    """Mean over the rows' classes of MMD^2(class, all), by its definition, own pairs left out, the term all-all dropped to its mean."""
    n, d = z.shape

    def kernel(a, b):
        return np.mean([2 * d * s / (2 * d * s + np.sum((a - b) ** 2)) for s in scales])

    within, across = [], []
    for i in range(n):
        mates = [kernel(z[i], z[j]) for j in range(n) if j != i and y[j] == y[i]]
        within.append(np.mean(mates))
        across.append(np.mean([kernel(z[i], z[j]) for j in range(n) if j != i]))
    return np.mean(within) - np.mean(across)


def test_mmd_term_against_a_double_loop():
    inputs = batch(40)
    _, terms = values(small(MMDPredictor, strength=2.0), inputs)
    model = small(MMDPredictor, strength=2.0)
    z = array(model.sampling(list(model.encoder(inputs["x"])))).astype("float64")
    z = (z - z.mean(0)) / z.std(0)
    assert np.isclose(terms["mmd"], mmd_by_loops(z, inputs["c"].argmax(1)), atol=2e-5)


def test_standardise():
    z = np.random.default_rng(0).normal(5, 3, size=(500, 2))
    assert np.allclose(array(standardise(z)), (z - z.mean(0)) / z.std(0), atol=1e-5)
    assert np.allclose(array(standardise(1e3 * z)), array(standardise(z)), atol=1e-4)


# ---------------------------------------------------------------- gradient reversal


def gradient(function, h):
    """The gradient of a scalar function by the backend at hand."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            h = tf.constant(h)
            tape.watch(h)
            value = function(h)
        return array(tape.gradient(value, h))
    if backend == "jax":
        import jax

        return np.asarray(jax.jit(jax.grad(function))(h))
    import torch

    leaf = torch.tensor(h, requires_grad=True)
    function(leaf).backward()
    return leaf.grad.numpy()


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 5.0])
def test_reversed_gradient(strength):
    h = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    assert np.allclose(array(reverse_gradient(h, strength)), h, atol=1e-6)
    found = gradient(lambda t: ops.sum(ops.sin(reverse_gradient(t, strength))), h)
    assert np.allclose(found, -strength * np.cos(h), atol=1e-5)


def test_adversary_descends_and_encoder_climbs():
    """One step: the adversary's own part lowers its cross-entropy, the encoder's raises it."""
    inputs = batch()

    def step(frozen):
        model = small(AdversarialPredictor, strength=1.0)
        model.encoder.get_layer("z_log_var").set_weights([np.zeros((16, 2)), np.full(2, -20.0)])  # no noise
        model.weigh(adversary=1.0)
        before = values(model, inputs)[1]["adversary"]
        getattr(model, frozen).trainable = False
        model.compile(optimizer=keras.optimizers.SGD(0.05))
        model.fit(inputs, batch_size=256, verbose=0)
        return values(model, inputs)[1]["adversary"] - before

    assert step("encoder") < 0 < step("adversary")


# ---------------------------------------------------------------- training, saving


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_y(kind):
    x, y, c = toy(600)
    model = small(kind, **({"strength": 1.0} if kind is MMDPredictor else {}))
    history = train_predictor(model, x, y, c, epochs=12, batch_size=50, learning_rate=1e-2)
    assert len(history["loss"]) == 12 and set(history) == {"loss", *model.term_weights}
    assert np.mean(model.predict({"x": toy(400, 1)[0]}, verbose=0).argmax(1) == toy(400, 1)[1].argmax(1)) > 0.65
    assert all(np.all(np.isfinite(line)) for line in history.values())


def test_invariant_code_forgets_c_and_plain_code_does_not():
    (x, y, c), (x_test, y_test, c_test), leaks = toy(1000), toy(700, 1), []
    for model in (small(Predictor), small(InvariantPredictor, beta=0.3, lam=0.03)):
        train_predictor(model, x, y, c, epochs=15, batch_size=50, learning_rate=1e-2)
        codes = [icvae.evaluation.sample_codes(*model.encoder.predict(part, verbose=0), seed) for seed, part in enumerate((x, x_test))]
        leaks.append(icvae.probe_leakage(codes[0], c, codes[1], c_test)["strongest"])
        assert np.mean(model.predictor.predict(codes[1], verbose=0).argmax(1) == y_test.argmax(1)) > 0.7
    assert leaks[1] < 0.6 and leaks[1] < leaks[0] - 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind, tmp_path):
    model, inputs = small(kind, **({"strength": 0.7} if kind in (MMDPredictor, AdversarialPredictor) else {})), batch(30)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is kind and again.get_config().keys() == model.get_config().keys()
    assert {name: getattr(again, name) for name in kind.options} == {name: getattr(model, name) for name in kind.options}
    assert np.allclose(again.predict(inputs, verbose=0), model.predict(inputs, verbose=0), atol=1e-6)
    assert again.term_weights == model.term_weights


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_plain_agree(kind):
    x, y, c = toy(64)
    losses = []
    for compiled in (False, keras.backend.backend() != "torch"):
        model = small(kind)
        model.encoder.get_layer("z_log_var").set_weights([np.zeros((16, 2)), np.full(2, -20.0)])  # XLA may draw other noise
        model.compile(optimizer=keras.optimizers.SGD(1e-3), jit_compile=compiled)
        losses.append(model.fit({"x": x, "y": y, "c": c}, batch_size=64, shuffle=False, verbose=0).history["loss"][0])
    assert np.isclose(*losses, rtol=1e-4)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", KINDS[1:])
def test_integers_for_c_are_refused(kind):
    inputs = batch(40)
    with pytest.raises(ValueError, match="one-hot"):
        small(kind).compute_loss({**inputs, "c": inputs["c"].argmax(1)})


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_y_is_refused(kind):
    inputs = batch(40)
    with pytest.raises(ValueError, match="one-hot"):
        small(kind).compute_loss({**inputs, "y": inputs["y"].argmax(1)})
    with pytest.raises(ValueError, match="2 columns"):
        small(kind).compute_loss({**inputs, "y": inputs["y"][:, :2]})


def test_train_predictor_refuses():
    x, y, c = toy(41)
    for bad in ((x, y.argmax(1), c), (x, y, c.argmax(1)), (x[:20], y, c), (x, 0.5 * y, c), (x[:0], y[:0], c[:0])):
        with pytest.raises(ValueError, match=r"one-hot|rows|matrix"):
            train_predictor(small(Predictor), *bad)
    for size in (4, 40):  # too small; and a last batch of one row
        with pytest.raises(ValueError, match="too small"):
            train_predictor(small(MMDPredictor), x, y, c, batch_size=size)


@pytest.mark.parametrize(("kind", "options"), [(InvariantPredictor, {"beta": -1}), (InvariantPredictor, {"lam": float("nan")})])
def test_negative_weights_are_refused(kind, options):
    with pytest.raises(ValueError, match="must be a number >= 0"):
        small(kind, **options)
    for other in (MMDPredictor, AdversarialPredictor):
        with pytest.raises(ValueError, match="strength"):
            small(other, strength=-0.1)


# ---------------------------------------------------------------- images


def picture(side=9, seed=0):
    return np.random.default_rng(seed).random((3, side * side), dtype="float32")


def test_rotation_of_known_images():
    x = picture()
    assert np.allclose(rotate_images(x, 0), x, atol=1e-6)
    turned = rotate_images(x, 90).reshape(3, 9, 9)
    assert all(np.allclose(turned[i], np.rot90(x[i].reshape(9, 9)), atol=1e-5) for i in range(3))  # anticlockwise
    assert np.allclose(rotate_images(rotate_images(x, 90), -90), x, atol=1e-5)


def test_rotation_against_scipy_image_by_image():
    x, degrees = picture(12), np.array([-22.5, 65, 10])
    expected = [
        ndimage.rotate(image.reshape(12, 12), angle, reshape=False, order=1).ravel() for image, angle in zip(x, degrees, strict=True)
    ]
    assert np.allclose(rotate_images(x, degrees), expected, atol=1e-5)
    assert rotate_images(x, 45).min() >= -1e-6 and rotate_images(x, 45).max() <= 1 + 1e-6


def test_scanners_are_deterministic_and_stay_in_range():
    x, scanner = picture(8).repeat(4, 0), np.arange(12) % 3
    first = scan_images(x, scanner, seed=1)
    assert np.array_equal(first, scan_images(x, scanner, seed=1)) and not np.array_equal(first, scan_images(x, scanner, seed=2))
    assert first.dtype == np.float32 and first.min() >= 0 and first.max() <= 1
    assert np.allclose(first * 255, np.round(first * 255), atol=1e-3)


def test_a_scanner_against_its_definition(monkeypatch):
    silent = {name: {**settings, "noise": 0.0} for name, settings in prediction.SCANNERS.items()}
    monkeypatch.setattr(prediction, "SCANNERS", silent)
    x = picture(10)
    assert np.allclose(scan_images(x, 0), x, atol=1 / 255)  # the reference only adds noise
    p = silent["B"]
    for row, image in zip(scan_images(x, 1), x, strict=True):
        blurred = ndimage.gaussian_filter(image.reshape(10, 10).astype("float64"), p["blur"])
        assert np.allclose(row, (p["low"] + (p["high"] - p["low"]) * blurred ** p["gamma"]).ravel(), atol=1 / 255)


def test_harmonise_decodes_with_the_reference():
    keras.utils.set_random_seed(0)
    model = icvae.CVAE(icvae.build_encoder(6, 2, hidden=(8,)), icvae.build_decoder(2, 3, 6, hidden=(8,)))
    x = toy(30)[0]
    expected = model.decode(model.encode(x)[0], np.tile([[0.0, 1.0, 0.0]], (30, 1)))
    assert np.allclose(harmonise(model, x, np.eye(3)[1]), array(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotate_images(np.zeros((3, 10)), 0), "side"),
        (lambda: rotate_images(np.zeros((3, 9)), np.zeros(2)), "one angle"),
        (lambda: rotate_images(np.zeros((3, 3, 3)), 0), "side"),
        (lambda: scan_images(np.zeros((3, 10)), 0), "side"),
        (lambda: scan_images(np.zeros((3, 9)), 3), "0 to 2"),
        (
            lambda: harmonise(icvae.CVAE(icvae.build_encoder(9, 2), icvae.build_decoder(2, 3, 9)), np.zeros((3, 9)), np.eye(3)),
            "one scanner",
        ),
        (lambda: parity_gap(np.zeros(4), np.zeros(4)), "one-hot"),
        (lambda: parity_gap(np.zeros(3), np.eye(2)[[0, 1, 0, 1]]), "one decision"),
        (lambda: parity_gap(np.zeros(3), np.eye(2)[[0, 0, 0]]), "non-empty"),
        (lambda: parity_bound(-0.1), "shares"),
    ],
)
def test_wrong_arrays_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------- parity


def test_parity_gap_by_hand():
    group = np.eye(2)[[0, 0, 0, 0, 1, 1]]
    assert np.isclose(parity_gap(np.array([1, 1, 1, 0, 1, 0]), group), 0.25)
    assert np.isclose(parity_gap(np.array([True, True, True, False, True, False]), group), 0.25)
    decisions = np.eye(3)[[0, 1, 2, 2, 0, 0]]  # rates (1/4, 1/4, 1/2) and (1, 0, 0)
    assert np.isclose(parity_gap(decisions, group), 0.75)
    assert parity_gap(np.ones(6), group) == 0


@pytest.mark.parametrize("seed", range(20))
def test_parity_bound_on_random_discrete_codes(seed):
    """z takes 6 values: I(z;c) and the total variation are sums, and every classifier can be tried."""
    rng = np.random.default_rng(seed)
    groups = rng.dirichlet(np.full(6, rng.choice([0.2, 1.0, 20.0])), 2) + 1e-12
    mean = groups.mean(0)
    information = 0.5 * np.sum(groups * np.log(groups / mean))
    gaps = [abs((groups[0] - groups[1])[[bool(k >> i & 1) for i in range(6)]].sum()) for k in range(64)]
    assert np.isclose(max(gaps), 0.5 * np.abs(groups[0] - groups[1]).sum(), atol=1e-9)
    assert max(gaps) <= parity_bound(information) + 1e-9


@pytest.mark.parametrize("m", [0.05, 0.5, 2.0])
def test_parity_bound_for_two_gaussians(m):
    def integrand(z):
        p, q = stats.norm.pdf(z, -m), stats.norm.pdf(z, m)
        return 0.5 * sum(a * np.log(a / (0.5 * (p + q))) for a in (p, q))

    information = integrate.quad(integrand, -m - 12, m + 12, limit=200)[0]
    assert 2 * stats.norm.cdf(m) - 1 <= parity_bound(information) <= 1
    assert parity_bound(0) == 0 and parity_bound(10) == 1


class Watch(keras.layers.Layer):
    """Counts its calls and keeps the training flags it was called with."""

    def __init__(self):
        super().__init__()
        self.flags = []

    def call(self, h, training=False):
        self.flags.append(training)
        return h


@pytest.mark.parametrize("kind", ["InvariantPredictor", "AdversarialPredictor", "MMDPredictor"])
def test_each_part_is_called_once_a_step_with_the_training_flag(kind):
    """Dropout in a decoder, a head or an adversary would otherwise never be active, or twice."""
    x, y, c = toy(40)
    watches = {}

    def watched(name, part):
        watches[name] = Watch()
        return keras.Model(part.inputs, watches[name](part.outputs[0]))

    encoder, head = icvae.build_encoder(x.shape[1], 2, (8,)), watched("head", build_head(2, y.shape[1], (8,)))
    parts = {
        "InvariantPredictor": lambda: (watched("decoder", icvae.build_decoder(2, c.shape[1], x.shape[1], (8,))), head),
        "AdversarialPredictor": lambda: (head, watched("adversary", build_head(2, c.shape[1], (8,)))),
        "MMDPredictor": lambda: (head,),
    }
    model = getattr(prediction, kind)(encoder, *parts[kind](), seed=0)
    for watch in watches.values():
        watch.flags.clear()  # of building
    for training in (True, False):
        model.compute_loss({"x": x, "y": y, "c": c}, training=training)
    assert all(watch.flags == [True, False] for watch in watches.values()), {name: watch.flags for name, watch in watches.items()}


def test_train_predictor_names_the_argument_at_fault():
    x, y, c = toy(40)
    for message, bad in {
        "y must be one-hot": (x, y.argmax(1), c),
        "c must be": (x, y, c.argmax(1)),
        "x must have": (x[:, :2], y, c),
    }.items():
        with pytest.raises(ValueError, match=message):
            train_predictor(small(Predictor) if "c" not in message[:1] else small(MMDPredictor), *bad)


def test_harmonise_names_what_does_not_fit():
    model = icvae.CVAE(icvae.build_encoder(6, 2, (8,)), icvae.build_decoder(2, 3, 6, (8,)), seed=0)
    x = np.random.default_rng(0).random((5, 6)).astype("float32")
    assert icvae.harmonise(model, x, np.eye(3)[0]).shape == (5, 6)
    for message, call in {
        r"reference must be the c of one scanner, \(3,\)": lambda: icvae.harmonise(model, x, np.eye(4)[0]),
        "x must have the shape": lambda: icvae.harmonise(model, x[:, :4], np.eye(3)[0]),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    assert icvae.harmonise(model, x, np.eye(3)[0]).shape == (5, 6)  # the model lives
