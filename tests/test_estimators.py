"""The estimators of chapter 5 against loops in float64, closed forms and known truths; training with every penalty; bad input."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.special import logsumexp

import icvae
from icvae import estimators as est
from icvae.training import SETTINGS, train


def array(x):
    return ops.convert_to_numpy(x)


def case(batch=12, d=3, seed=0, dtype="float64"):
    """z, z_mean, z_log_var and one-hot c of three classes."""
    rng = np.random.default_rng(seed)
    z_mean, z_log_var = rng.normal(size=(batch, d)), rng.normal(-0.5, 0.7, size=(batch, d))
    z = z_mean + np.exp(z_log_var / 2) * rng.normal(size=(batch, d))
    c = np.eye(3)[np.arange(batch) % 3]
    return tuple(a.astype(dtype) for a in (z, z_mean, z_log_var, c))


def reference_log_q(z, z_mean, z_log_var):
    return np.array([[stats.norm.logpdf(a, m, np.exp(v / 2)).sum() for m, v in zip(z_mean, z_log_var, strict=True)] for a in z])


# ---------------------------------------------------------------- sampling


def test_log_densities():
    z, z_mean, z_log_var, _ = case()
    expected = reference_log_q(z, z_mean, z_log_var)
    assert np.allclose(array(est.log_density_pairs(z, z_mean, z_log_var)), expected, rtol=1e-5)
    assert np.allclose(array(est.log_density(*map(ops.convert_to_tensor, (z, z_mean, z_log_var)))), np.diag(expected), rtol=1e-5)
    assert array(est.log_density_pairs(z[:5], z_mean, z_log_var)).shape == (5, 12)


def test_mixed_precision_of_the_input_is_no_error():
    z, z_mean, z_log_var, c = case()
    z_mean, z_log_var = z_mean.astype("float32"), z_log_var.astype("float32")
    log_q = est.log_density_pairs(z, z_mean, z_log_var)
    for value in (est.leak_batch(log_q, c), est.mmd(z_mean, c), est.leak_moments(z_mean, z_log_var, c)):
        assert np.isfinite(float(value))


def reference_marginal(log_q, name, rows):
    """log of the weighted sum, with the weights written out by hand for each entry."""
    batch = len(log_q)
    result = []
    for i in range(batch):
        total = 0.0
        for j in range(batch):
            weight = {
                "own": 1 / batch,
                "loo": 0 if i == j else 1 / (batch - 1),
                "mws": 1 / (batch * rows),
                "esmaeili": 1 / rows if i == j else (rows - 1) / (rows * (batch - 1)),
                "mss": 1 / rows if i == j else (rows - batch + 1) / (rows * (batch - 1)) if j == (i + 1) % batch else 1 / (batch - 1),
            }[name]
            total += weight * np.exp(log_q[i, j])
        result.append(np.log(total))
    return np.array(result)


@pytest.mark.parametrize("name", ["own", "loo", "mws", "mss", "esmaeili"])
@pytest.mark.parametrize("rows", [12, 100, 60_000])
def test_marginals_equal_the_written_out_sums(name, rows):
    log_q = reference_log_q(*case()[:3])
    function = getattr(est, f"log_marginal_{name}")
    found = function(log_q) if name in ("own", "loo") else function(log_q, rows)
    assert np.allclose(array(found), reference_marginal(log_q, name, rows), rtol=1e-5)


def test_whole_data_set_as_the_batch_needs_no_correction():
    log_q = reference_log_q(*case()[:3])
    assert np.allclose(array(est.log_marginal_esmaeili(log_q, 12)), array(est.log_marginal_own(log_q)), rtol=1e-5)


@pytest.mark.parametrize("name", ["esmaeili", "mss"])
def test_weighted_estimates_are_unbiased_for_the_density(name):
    """Mean over all batches that contain a given row equals q(z) of that row's code, exactly."""
    from itertools import permutations

    z, z_mean, z_log_var, _ = case(batch=5)
    log_q, function = reference_log_q(z, z_mean, z_log_var), getattr(est, f"log_marginal_{name}")
    batches = [(0, *others) for others in permutations(range(1, 5), 2)]
    found = [np.exp(array(function(log_q[np.ix_(rows, rows)], 5))[0]) for rows in batches]
    assert np.isclose(np.mean(found), np.exp(log_q[0]).mean(), rtol=1e-5)


def test_limits_and_order():
    z, z_mean, z_log_var, _ = case()
    log_q = reference_log_q(5 * z, 5 * z_mean, z_log_var)  # far apart
    values = {n: float(est.rate(log_q, getattr(est, f"log_marginal_{n}")(log_q))) for n in ("own", "loo")}
    values["esmaeili"] = float(est.rate(log_q, est.log_marginal_esmaeili(log_q, 1000)))
    assert values["own"] <= np.log(12) + 1e-6 and values["esmaeili"] <= np.log(1000) + 1e-6
    assert values["own"] < values["esmaeili"] < values["loo"]


def test_sharp_codes_stay_finite():
    z_mean = case(dtype="float32")[1]
    log_q = est.log_density_pairs(z_mean, z_mean, np.full(z_mean.shape, -20, "float32"))
    for function in (est.log_marginal_own, est.log_marginal_loo, lambda q: est.log_marginal_mss(q, 99)):
        assert np.all(np.isfinite(array(function(log_q))))


# ---------------------------------------------------------------- learned marginals


def on_grid(marginal):
    axis = np.linspace(-9, 9, 181)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype("float32")
    return float(np.exp(array(marginal(grid)).astype("float64")).sum() * (axis[1] - axis[0]) ** 2)


def marginals():
    keras.utils.set_random_seed(3)
    mixture, flow = est.MixtureMarginal(5, seed=1), est.FlowMarginal(4, hidden=8)
    encoder = icvae.build_encoder(4, 2, hidden=(8,))
    vamp = est.VampMarginal(encoder, np.random.default_rng(0).normal(size=(6, 4)))
    for marginal in (mixture, flow):
        marginal.build((None, 2))
        for weight in marginal.weights:  # away from the start
            weight.assign(array(weight) + 0.3 * np.random.default_rng(1).normal(size=weight.shape))
    return {"mixture": mixture, "vamp": vamp, "flow": flow}


@pytest.mark.parametrize("name", ["mixture", "vamp", "flow"])
def test_marginals_are_densities(name):
    assert abs(on_grid(marginals()[name]) - 1) < 0.01


def test_mixture_equals_reference():
    mixture, z = marginals()["mixture"], case(d=2)[0].astype("float32")
    means, log_vars, logits = (array(w).astype("float64") for w in (mixture.means, mixture.log_vars, mixture.logits))
    expected = logsumexp(reference_log_q(z, means, log_vars) + logits - logsumexp(logits), axis=1)
    assert np.allclose(array(mixture(z)), expected, rtol=1e-4)


def test_vamp_is_the_mean_posterior_of_its_inputs():
    vamp, z = marginals()["vamp"], case(d=2)[0].astype("float32")
    z_mean, z_log_var = (array(t) for t in vamp.encoder(array(vamp.pseudo_inputs)))
    expected = logsumexp(reference_log_q(z, z_mean, z_log_var), axis=1) - np.log(6)
    assert np.allclose(array(vamp(z)), expected, rtol=1e-4)


def test_fit_marginal_finds_a_known_density():
    """Codes from two separated clusters: the entropy of q(z) is known, and a mixture of Gaussians can reach it."""
    rng = np.random.default_rng(0)
    z_mean = np.concatenate([np.full((500, 2), -3.0), np.full((500, 2), 3.0)]).astype("float32")
    options = {"epochs": 20, "batch_size": 100, "learning_rate": 0.05}
    marginal = est.fit_marginal(est.MixtureMarginal(4, seed=0), z_mean, np.zeros_like(z_mean), **options)
    z = z_mean + rng.normal(size=z_mean.shape).astype("float32")
    entropy = np.log(2) + 2 * 0.5 * np.log(2 * np.pi * np.e)
    assert abs(-np.mean(array(marginal(z))) - entropy) < 0.1


# ---------------------------------------------------------------- the leak


def reference_leak(log_q, c):
    label, total = c.argmax(1), 0.0
    for j in range(len(log_q)):
        total += logsumexp(log_q[j, label == label[j]]) - np.log(np.sum(label == label[j])) - logsumexp(log_q[j]) + np.log(len(log_q))
    return total / len(log_q)


def test_leak_batch_equals_the_loop():
    z, z_mean, z_log_var, c = case()
    log_q = reference_log_q(z, z_mean, z_log_var)
    assert np.isclose(float(est.leak_batch(log_q, c)), reference_leak(log_q, c), rtol=1e-5)


def test_leak_batch_has_the_right_range():
    _, z_mean, z_log_var, c = case(batch=300)
    far = z_mean + 50 * c  # the class is plain to see
    assert np.isclose(float(est.leak_batch(est.log_density_pairs(far, far, z_log_var), c)), np.log(3), atol=1e-4)
    same = np.zeros_like(z_mean)  # all posteriors alike: nothing to see
    assert np.isclose(float(est.leak_batch(est.log_density_pairs(z_mean, same, same), c)), 0, atol=1e-6)


def test_a_class_for_each_row_makes_the_leak_the_rate():
    """What happens with a continuous c: the penalty becomes the own-included estimate of I(x;z)."""
    log_q = reference_log_q(*case()[:3])
    assert np.isclose(float(est.leak_batch(log_q, np.eye(12))), float(est.rate(log_q, est.log_marginal_own(log_q))), rtol=1e-5)


def reference_mmd(z, c, scales=(0.2, 0.5, 1.0, 2.0)):
    """By definition, class by class, in loops: kernels of distinct rows only."""

    def k(a, b):
        t = 2 * z.shape[1] * np.array(scales)
        return np.mean(t / (t + np.sum((a - b) ** 2)))

    n, label, total = len(z), c.argmax(1), 0.0
    everything = np.mean([k(z[i], z[j]) for i in range(n) for j in range(n) if i != j])
    for name in range(c.shape[1]):
        rows = np.flatnonzero(label == name)
        within = np.mean([k(z[i], z[j]) for i in rows for j in rows if i != j])
        across = np.mean([k(z[i], z[j]) for i in rows for j in range(n) if i != j])
        total += len(rows) / n * (within + everything - 2 * across)
    return total


def test_mmd_equals_its_definition():
    z, _, _, c = case(batch=15)
    assert np.isclose(float(est.mmd(z, c)), reference_mmd(z, c), rtol=1e-5)
    assert np.isclose(float(est.mmd(z.astype("float32") + 1000, c)), reference_mmd(z, c), rtol=0.02)


def test_mmd_is_unbiased():
    rng, found = np.random.default_rng(0), []
    for _ in range(150):
        found.append(float(est.mmd(rng.normal(size=(20, 2)), np.eye(2)[rng.permutation(20) % 2])))
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(150)
    assert float(est.mmd(rng.normal(size=(200, 2)) + 2 * (np.arange(200)[:, None] % 2), np.eye(2)[np.arange(200) % 2])) > 0.05


def reference_moments(z_mean, z_log_var, c):
    """The KL of two Gaussians, written out, for each class against all."""

    def moments(rows):
        return z_mean[rows].mean(0), np.cov(z_mean[rows].T, bias=True) + np.diag(np.exp(z_log_var[rows]).mean(0))

    label, total = c.argmax(1), 0.0
    m, s = moments(np.arange(len(c)))
    for name in np.unique(label):
        m_c, s_c = moments(np.flatnonzero(label == name))
        quadratic = (m - m_c) @ np.linalg.solve(s, m - m_c) + np.trace(np.linalg.solve(s, s_c)) - len(m)
        total += np.mean(label == name) * 0.5 * (quadratic + np.linalg.slogdet(s)[1] - np.linalg.slogdet(s_c)[1])
    return total


@pytest.mark.parametrize("classes", [3, 5])  # five columns: two classes that the batch lacks
def test_leak_moments_is_the_mean_kl_of_the_classes(classes):
    _, z_mean, z_log_var, c = case(batch=30)
    padded = np.pad(c, ((0, 0), (0, classes - 3)))
    assert np.isclose(float(est.leak_moments(z_mean, z_log_var, padded)), reference_moments(z_mean, z_log_var, c), rtol=1e-5)
    assert float(est.leak_moments(np.ones((6, 2)), np.zeros((6, 2)), np.eye(3)[np.arange(6) % 3])) == pytest.approx(0, abs=1e-6)


def test_posterior_probe():
    """Codes whose class-conditional densities are known: its figure comes near the truth, from below."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 6000)
    z_mean = rng.normal(size=(6000, 1)) + label[:, None]
    z, c = z_mean + 0.5 * rng.normal(size=z_mean.shape), np.eye(2)[label]
    found, accuracy = icvae.posterior_probe(z[3000:], c[3000:], z_mean[:3000], np.full((3000, 1), np.log(0.25)), c[:3000])
    densities = [stats.norm.pdf(z[3000:, 0], m, np.sqrt(1.25)) for m in (0, 1)]
    truth = np.mean(np.log(np.choose(label[3000:], densities) / np.mean(densities, axis=0)))
    assert abs(found - truth) < 0.02 and abs(accuracy - stats.norm.cdf(0.5 / np.sqrt(1.25))) < 0.02


def test_reader_nats_is_a_game():
    """The value is H(c) minus the cross-entropy; codes descend on it, the reader's weights climb."""
    z, _, _, c = case()
    z, reader = np.asarray(z, "float32"), icvae.build_reader(z.shape[1], c.shape[1], (8,), seed=0)
    value = float(est.reader_nats(reader, keras.ops.convert_to_tensor(z), c))
    log_p = np.asarray(keras.ops.convert_to_numpy(keras.ops.log_softmax(reader(z))), "float64")
    share = c.mean(0)[c.mean(0) > 0]
    assert np.isclose(value, -np.sum(share * np.log(share)) + np.mean((c * log_p).sum(1)), atol=1e-5)


def test_the_reader_of_a_penalised_model_learns_and_is_saved(tmp_path):
    """Codes that copy c, an encoder that can't move: the reader's figure rises to H(c), though the loss is minimised."""
    c = np.eye(3, dtype="float32")[np.arange(300) % 3]
    encoder = icvae.build_encoder(3, 3, hidden=())
    encoder.get_layer("z_mean").set_weights([4 * np.eye(3), np.zeros(3)])
    encoder.get_layer("z_log_var").set_weights([np.zeros((3, 3)), np.full(3, -2.0)])
    encoder.trainable = False
    reader = icvae.build_reader(3, 3, (16,), seed=0)
    model = est.PenalisedCVAE(encoder, icvae.build_decoder(3, 3, 3, (8,)), {"reader": 5.0}, reader=reader, warm_up=3, seed=0)
    history = train(model, c, c, epochs=40, batch_size=50, learning_rate=1e-2)
    assert history["reader"][-1] > 0.9 * np.log(3) and history["reader"][-1] > history["reader"][0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.term_weights == model.term_weights and again.warm_up.steps == 3
    codes = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    assert np.allclose(*(keras.ops.convert_to_numpy(m.reader(codes)) for m in (model, again)), atol=1e-6)


def test_warm_up_changes_gradients_not_values():
    layer = est.WarmUp(4)
    values = {"a": keras.ops.convert_to_tensor(2.0)}
    assert all(float(layer(values, training=flag)["a"]) == 2.0 for flag in (True, False, True))
    assert float(keras.ops.convert_to_numpy(layer.step)) == 2


# ---------------------------------------------------------------- training


def data(n=150):
    rng = np.random.default_rng(0)
    c = np.eye(3, dtype="float32")[rng.integers(0, 3, n)]
    return (c @ rng.normal(size=(3, 6)) + rng.normal(size=(n, 6))).astype("float32"), c


def build(penalties, **options):
    x, _ = data()
    settings = {**SETTINGS, "z_dim": 2, "output_activation": None, "penalties": penalties, **options}
    return est.build_penalised(settings, x, 3)


EVERYTHING = {name: 0.1 for name in est.PENALTIES}
RUNS = [{"penalties": EVERYTHING if name == "flow" else {"learned": 0.7}, "marginal": name} for name in ("mixture", "vamp", "flow")]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["marginal"])
def test_every_penalty_trains_compiled_with_a_smaller_last_batch(run):
    model = build(**run)
    before = [array(w).copy() for w in model.trainable_weights]
    history = train(model, *data(), epochs=2, batch_size=32)  # 150 = 4 * 32 + 22
    assert {"recon", "kl_prior", *run["penalties"]} <= set(history) and np.all(np.isfinite(history["loss"]))
    assert not any(np.array_equal(array(w), b) for w, b in zip(model.trainable_weights, before, strict=True)), "all are trained"
    weighted = history["recon"][-1] + model.term_weights["kl_prior"] * history["kl_prior"][-1]
    weighted += sum(weight * history[name][-1] for name, weight in run["penalties"].items())
    assert np.isclose(history["loss"][-1], weighted, rtol=1e-3)


def test_leak_penalty_removes_the_class():
    """With a small beta a linear rule reads the class from the codes, and no more with the penalty; they still tell of x."""
    from sklearn.linear_model import LogisticRegression

    x, c = data(600)
    scores = {}
    for weight in (0.0, 5.0):
        model = build({"leak_moments": weight}, beta=0.05, activation="tanh")
        model.decode = lambda z, c, training=False, decode=model.decode: decode(z, ops.zeros_like(c), training)  # needs the class in z
        train(model, x, c, epochs=20, batch_size=64)
        codes = model.encoder.predict(x, verbose=0)
        z = icvae.evaluation.sample_codes(*codes)
        scores[weight] = LogisticRegression().fit(z[:400], c[:400].argmax(1)).score(z[400:], c[400:].argmax(1))
    assert scores[5.0] < scores[0.0] - 0.1 and icvae.mutual_information(*codes)[0] > 0.5


def test_without_penalties_it_is_the_model_of_chapter_3():
    x, _ = data()
    settings = {**SETTINGS, "z_dim": 2, "model": "CVAE"}
    assert type(est.build_penalised(settings, x, 3)) is icvae.CVAE


def test_save_and_load(tmp_path):
    x, c = data()
    model = build({"mmd": 3.0, "esmaeili": 0.5})
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.rows == model.rows and loaded.term_weights == model.term_weights
    assert np.allclose(loaded.predict({"x": x, "c": c}, verbose=0), model.predict({"x": x, "c": c}, verbose=0), atol=1e-6)


# ---------------------------------------------------------------- bad input


def test_a_batch_of_one_is_refused_where_others_are_needed():
    for function, rows in ((est.log_marginal_loo, ()), (est.log_marginal_mss, (9,)), (est.log_marginal_esmaeili, (9,))):
        with pytest.raises(ValueError, match="larger batch"):
            function(np.zeros((1, 1)), *rows)


@pytest.mark.parametrize("rows", [None, 0, 3])
def test_wrong_size_of_the_data_set(rows):
    for function in (est.log_marginal_mws, est.log_marginal_mss, est.log_marginal_esmaeili):
        with pytest.raises(ValueError, match="size of the data set"):
            function(np.zeros((4, 4)), rows)


def test_bad_shapes():
    z, z_mean, z_log_var, c = case()
    log_q = est.log_density_pairs(z, z_mean, z_log_var)
    for bad in (np.zeros((3, 4)), np.zeros(3)):
        with pytest.raises(ValueError, match="square"):
            est.log_marginal_own(bad)
    with pytest.raises(ValueError, match="as wide as"):
        est.log_density_pairs(z[:, :2], z_mean, z_log_var)
    for bad in (c.argmax(1), c[:5], c.argmax(1)[:, None]):
        for call in (lambda b: est.leak_batch(log_q, b), lambda b: est.mmd(z, b), lambda b: est.leak_moments(z_mean, z_log_var, b)):
            with pytest.raises(ValueError, match="one-hot"):
                call(bad)
    with pytest.raises(ValueError, match="larger batch"):
        est.mmd(z[:1], c[:1])
    with pytest.raises(ValueError, match="pseudo_inputs"):
        est.VampMarginal(icvae.build_encoder(4, 2), np.zeros(4))
    with pytest.raises(ValueError, match="2 dimensions"):
        est.FlowMarginal().build((None, 1))


@pytest.mark.parametrize("penalty", ["mmd", "leak_moments", "leak_batch", "reader"])
def test_a_penalty_that_compares_classes_refuses_a_continuous_c(penalty):
    """In a compiled step the values of c are unknown: they are looked at before it."""
    (x, c), model = data(), build({penalty: 1.0})
    before = [np.array(ops.convert_to_numpy(w)) for w in model.weights]
    for bad in (c + 0.1, c.argmax(1), c.argmax(1)[:, None]):
        with pytest.raises(ValueError, match="c must be one-hot rows"):
            train(model, x, bad, epochs=1)
    assert all(np.array_equal(a, ops.convert_to_numpy(w)) for a, w in zip(before, model.weights, strict=True))


def test_bad_options_of_the_model():
    for penalties, message in (({"typo": 1.0}, "no penalties named"), ({"mmd": -1.0}, "mmd"), ({"learned": 1.0}, "marginal")):
        with pytest.raises(ValueError, match=message):
            build(penalties)
    with pytest.raises(ValueError, match="build_reader"):
        est.PenalisedCVAE(icvae.build_encoder(4, 2), icvae.build_decoder(2, 3, 4), {"reader": 1.0})
    with pytest.raises(ValueError, match="save_weights"):
        build({"learned": 1.0}, marginal="mixture").get_config()
    with pytest.raises(ValueError, match="size of the data set"):
        est.PenalisedCVAE(icvae.build_encoder(4, 2), icvae.build_decoder(2, 3, 4), {"mss": 1.0})
