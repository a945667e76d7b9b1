"""The losses against independent references, by properties, by gradients, in float32, compiled, and with bad input."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy import integrate, stats
from scipy.spatial.distance import cdist

import icvae
from icvae.cvae import exp_residual, reconstruction_error
from icvae.invariance import bhattacharyya_pairwise, pairwise_bound

LOSSES = [icvae.kl_prior, icvae.kl_pairwise, icvae.kl_marginal, icvae.kl_gaussian_marginal, bhattacharyya_pairwise]
JIT = keras.backend.backend() != "torch"


def array(x):
    return ops.convert_to_numpy(x)


def posterior(batch=16, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, d)).astype("float32"), rng.normal(-1, 1, size=(batch, d)).astype("float32")


# ---------------------------------------------------------------- references: NumPy float64, by loops


def kl_1d(mean_i, log_var_i, mean_j, log_var_j):
    """KL of two one-dimensional Gaussians. The term e^t - 1 - t by its integral, t^2 * int_0^1 (1 - s) e^(ts) ds, without cancellation."""
    t = log_var_i - log_var_j
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s, weights = (nodes + 1) / 2, weights / 2
    residual = t * t * np.sum(weights * (1 - s) * np.exp(t * s))
    return 0.5 * (residual + (mean_i - mean_j) ** 2 * np.exp(-log_var_j))


def reference_pairs(z_mean, z_log_var):
    z_mean, z_log_var = z_mean.astype("float64"), z_log_var.astype("float64")
    batch, d = z_mean.shape
    pairs = np.zeros((batch, batch))
    for i in range(batch):
        for j in range(batch):
            for k in range(d):
                pairs[i, j] += kl_1d(z_mean[i, k], z_log_var[i, k], z_mean[j, k], z_log_var[j, k])
    return pairs


def reference_prior(z_mean, z_log_var):
    zero = np.zeros(1)
    return np.array([sum(kl_1d(m, v, zero, zero)[0] for m, v in zip(*row, strict=True)) for row in zip(z_mean, z_log_var, strict=True)])


def reference_gaussian_marginal(z_mean, z_log_var):
    """By definition: the mean KL of every row to the Gaussian with the moments of the batch. In extended precision."""
    z_mean, z_log_var = z_mean.astype("longdouble"), z_log_var.astype("longdouble")
    shift = z_log_var.mean(0)
    excess = np.expm1(z_log_var - shift).mean(0) + z_mean.var(0) * np.exp(-shift)
    return float(0.5 * np.sum(np.log1p(excess)))


def gradients(loss, z_mean, z_log_var, jit_compile=False):
    """Gradients of the mean of a loss by the backend at hand, through a Keras layer: no backend is named here."""
    z_mean, z_log_var = np.asarray(z_mean), np.asarray(z_log_var)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=jit_compile)
        def run(a, b):
            with tf.GradientTape() as tape:
                tape.watch([a, b])
                value = ops.mean(loss(a, b))
            return value, tape.gradient(value, [a, b])

        value, grads = run(tf.constant(z_mean), tf.constant(z_log_var))
    elif backend == "jax":
        import jax

        run = jax.value_and_grad(lambda a, b: ops.mean(loss(a, b)), argnums=(0, 1))
        value, grads = (jax.jit(run) if jit_compile else run)(z_mean, z_log_var)
    else:
        import torch

        leaves = [torch.tensor(t, requires_grad=True) for t in (z_mean, z_log_var)]
        value = ops.mean(loss(*leaves))
        grads = torch.autograd.grad(value, leaves, allow_unused=True)
        grads = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]
    return float(value), [array(g).astype("float64") for g in grads]


# ---------------------------------------------------------------- values


def test_kl_prior_equals_reference_and_quadrature():
    z_mean, z_log_var = posterior()
    assert np.allclose(array(icvae.kl_prior(z_mean, z_log_var)), reference_prior(z_mean, z_log_var), rtol=1e-5)
    m, v = 0.7, -1.3
    q = stats.norm(m, np.exp(v / 2))
    by_integral, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - stats.norm.logpdf(z)), -10, 10)
    assert np.isclose(array(icvae.kl_prior(np.array([[m]]), np.array([[v]])))[0], by_integral, rtol=1e-6)


def test_kl_pairwise_equals_reference_entry_by_entry():
    z_mean, z_log_var = posterior()
    assert np.allclose(array(icvae.kl_pairwise(z_mean, z_log_var)), reference_pairs(z_mean, z_log_var), rtol=1e-5, atol=1e-6)


def test_kl_pairwise_equals_torch_distributions():
    torch = pytest.importorskip("torch")
    z_mean, z_log_var = posterior()
    normal = torch.distributions.Normal(torch.tensor(z_mean), torch.tensor(z_log_var).mul(0.5).exp())
    rows = torch.distributions.Normal(normal.loc[:, None], normal.scale[:, None])
    expected = torch.distributions.kl_divergence(rows, normal).sum(-1).numpy()
    assert np.allclose(array(icvae.kl_pairwise(z_mean, z_log_var)), expected, rtol=1e-4, atol=1e-5)


def test_known_pair():
    pairs = array(icvae.kl_pairwise(np.zeros((2, 1)), np.array([[0.0], [2.0]])))
    assert np.allclose(pairs, [[0, 0.5676676], [2.194528, 0]], rtol=1e-5)


def test_kl_pairwise_against_monte_carlo():
    z_mean, z_log_var = posterior(batch=2)
    scale = np.exp(z_log_var / 2)
    z = z_mean[0] + scale[0] * np.random.default_rng(9).normal(size=(400_000, 3))
    ratio = stats.norm.logpdf(z, z_mean[0], scale[0]).sum(1) - stats.norm.logpdf(z, z_mean[1], scale[1]).sum(1)
    expected, error = ratio.mean(), ratio.std() / np.sqrt(len(ratio))
    assert abs(array(icvae.kl_pairwise(z_mean, z_log_var))[0, 1] - expected) < 5 * error


def test_kl_marginal_is_the_mean_of_pairs():
    z_mean, z_log_var = posterior(batch=33, d=5)
    assert np.isclose(float(icvae.kl_marginal(z_mean, z_log_var)), reference_pairs(z_mean, z_log_var).mean(), rtol=1e-6)


def test_kl_gaussian_marginal_is_the_smallest_mean_kl_to_a_gaussian():
    z_mean, z_log_var = posterior(batch=20)
    found = float(icvae.kl_gaussian_marginal(z_mean, z_log_var))
    mean, log_var = z_mean.mean(0), np.log(np.exp(z_log_var).mean(0) + z_mean.var(0))

    def mean_kl(m, v):
        return np.mean(
            [sum(kl_1d(a, b, c, d) for a, b, c, d in zip(*row, m, v, strict=True)) for row in zip(z_mean, z_log_var, strict=True)]
        )

    assert np.isclose(found, mean_kl(mean, log_var), rtol=1e-5)
    rng = np.random.default_rng(1)
    for _ in range(20):
        assert found <= mean_kl(mean + 0.1 * rng.normal(size=3), log_var + 0.1 * rng.normal(size=3)) + 1e-6


def test_reconstruction_error_is_the_gaussian_log_likelihood():
    x, x_hat = np.random.default_rng(0).normal(size=(2, 5, 7))
    constant = 7 / 2 * np.log(np.pi)
    expected = -stats.norm.logpdf(x, x_hat, np.sqrt(0.5)).sum(1)
    assert np.allclose(array(reconstruction_error(x, x_hat)) + constant, expected, rtol=1e-5)


def test_bhattacharyya_equals_the_integral():
    z_mean, z_log_var = posterior(batch=2, d=1)
    p, q = (stats.norm(z_mean[i, 0], np.exp(z_log_var[i, 0] / 2)) for i in range(2))
    overlap, _ = integrate.quad(lambda z: np.sqrt(p.pdf(z) * q.pdf(z)), -15, 15)
    assert np.isclose(array(bhattacharyya_pairwise(z_mean, z_log_var))[0, 1], -np.log(overlap), rtol=1e-4)


def test_mutual_information_of_a_gaussian_channel():
    """x ~ N(0, s^2), z = x + N(0, 1): I = log(1 + s^2) / 2."""
    x = 3 * np.random.default_rng(0).normal(size=(4000, 1))
    estimate, error = icvae.mutual_information(x, np.zeros_like(x))
    assert abs(estimate - 0.5 * np.log(10)) < 5 * error + 0.02


def test_mutual_information_extremes_and_seed():
    z_mean, z_log_var = posterior(batch=300, d=2)
    assert abs(icvae.mutual_information(np.zeros((300, 2)), np.zeros((300, 2)))[0]) < 1e-6
    distinct = icvae.mutual_information(1e3 * np.arange(300.0)[:, None], np.zeros((300, 1)))
    assert np.isclose(distinct[0], np.log(300))
    assert icvae.mutual_information(z_mean, z_log_var, 1) == icvae.mutual_information(z_mean, z_log_var, 1, block=7)
    assert icvae.mutual_information(z_mean, z_log_var, 1) != icvae.mutual_information(z_mean, z_log_var, 2)


def test_mutual_information_does_not_share_the_noise_of_its_input():
    """Codes made by default_rng(0) must not correlate with the draws of seed 0."""
    z_mean = 0.25 * np.random.default_rng(0).normal(size=(512, 4))
    estimates = [icvae.mutual_information(z_mean, np.zeros((512, 4)), seed)[0] for seed in range(12)]
    assert abs(estimates[0] - np.mean(estimates[1:])) < 4 * np.std(estimates[1:], ddof=1)


# ---------------------------------------------------------------- properties

finite = {"allow_nan": False, "allow_infinity": False, "width": 32}


@st.composite
def posteriors(draw):
    batch, d = draw(st.sampled_from([(2, 1), (5, 3), (8, 2)]))  # few shapes: each is compiled anew on some backends
    values = st.lists(st.floats(-5, 5, **finite), min_size=batch * d, max_size=batch * d)
    return tuple(np.array(draw(values), "float32").reshape(batch, d) for _ in range(2))


@settings(max_examples=60, deadline=None)
@given(posteriors())
def test_non_negative_zero_diagonal_and_order(p):
    pairs, prior = array(icvae.kl_pairwise(*p)), float(np.mean(array(icvae.kl_prior(*p))))
    marginal, gaussian = float(icvae.kl_marginal(*p)), float(icvae.kl_gaussian_marginal(*p))
    assert np.all(pairs >= 0) and np.all(np.diag(pairs) == 0)
    assert np.isclose(marginal, pairs.astype("float64").mean(), rtol=1e-4, atol=1e-6)
    slack = 1e-5 * (1 + marginal)
    kt = float(pairwise_bound(icvae.kl_pairwise(*p)))
    bd = float(pairwise_bound(bhattacharyya_pairwise(*p)))
    assert 0 <= gaussian <= min(marginal, prior) + slack
    assert bd - slack <= kt <= min(marginal, np.log(len(pairs))) + slack


@settings(max_examples=30, deadline=None)
@given(posteriors(), st.floats(0.125, 8, **finite), st.floats(-4, 4, **finite), st.randoms(use_true_random=False))
def test_invariant_under_permutation_and_affine_maps(p, factor, shift, random):
    order = list(range(len(p[0])))
    random.shuffle(order)
    moved = (factor * p[0][order] + shift).astype("float32"), (p[1][order] + 2 * np.log(factor)).astype("float32")
    for loss in (icvae.kl_marginal, icvae.kl_gaussian_marginal):
        assert np.isclose(float(loss(*p)), float(loss(*moved)), rtol=1e-3, atol=1e-4)
    pairs = array(icvae.kl_pairwise(*p))[np.ix_(order, order)]
    assert np.allclose(pairs, array(icvae.kl_pairwise(*moved)), rtol=1e-3, atol=1e-4)


def test_bounds_hold_around_the_truth():
    z_mean, z_log_var = posterior(batch=400, d=2)
    truth = np.mean([icvae.mutual_information(z_mean, z_log_var, seed)[0] for seed in range(30)])
    slack = 0.03
    assert float(pairwise_bound(bhattacharyya_pairwise(z_mean, z_log_var))) <= truth + slack
    assert truth <= float(icvae.kl_gaussian_marginal(z_mean, z_log_var)) + slack
    assert truth <= float(pairwise_bound(icvae.kl_pairwise(z_mean, z_log_var))) + slack


# ---------------------------------------------------------------- float32, gradients, compilation

rng = np.random.default_rng(5)
CASES = {
    "plain": (rng.normal(size=(24, 4)), rng.normal(size=(24, 4))),
    "offset": (1000 + 0.05 * rng.normal(size=(24, 4)), 0.01 * rng.normal(size=(24, 4))),
    "large offset": (1e5 + 0.5 * rng.normal(size=(24, 4)), 0.01 * rng.normal(size=(24, 4))),
    "nearly equal": (1e-6 * rng.normal(size=(24, 4)), -3 + 1e-4 * rng.normal(size=(24, 4))),
    "nearly equal, low": (1e-9 * rng.normal(size=(24, 4)), -20 + 1e-3 * rng.normal(size=(24, 4))),
    "nearly equal, high": (np.zeros((24, 4)), 20 + 1e-4 * rng.normal(size=(24, 4))),
    "wide": (rng.normal(size=(24, 4)), rng.uniform(-20, 20, size=(24, 4))),
    "sharp": (rng.normal(size=(24, 4)), np.full((24, 4), -20.0)),
    "broad": (rng.normal(size=(24, 4)), np.full((24, 4), 20.0)),
}
REFERENCES = {
    icvae.kl_prior: lambda m, v: reference_prior(m.astype("float64"), v.astype("float64")).mean(),
    icvae.kl_pairwise: lambda m, v: reference_pairs(m, v).mean(),
    icvae.kl_marginal: lambda m, v: reference_pairs(m, v).mean(),
    icvae.kl_gaussian_marginal: reference_gaussian_marginal,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", REFERENCES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("compiled", [False, True] if JIT else [False])
def test_float32_values_and_gradients(loss, case, compiled):
    z_mean, z_log_var = (t.astype("float32") for t in CASES[case])
    value, grads = gradients(loss, z_mean, z_log_var, jit_compile=compiled)
    assert np.isclose(value, REFERENCES[loss](z_mean, z_log_var), rtol=1e-4)
    assert all(np.all(np.isfinite(g)) for g in grads)
    exact = analytic_gradients(loss, z_mean.astype("longdouble"), z_log_var.astype("longdouble"))
    for found, expected in zip(grads, exact, strict=True):
        scale = np.linalg.norm(expected.astype("float64"))
        assert np.linalg.norm(found - expected.astype("float64")) <= 1e-4 * scale + 1e-30


def analytic_gradients(loss, m, v):
    """Gradients of the mean loss, derived by hand, in extended precision."""
    n = len(m)
    if loss is icvae.kl_prior:
        return m / n, np.expm1(v) / (2 * n)
    if loss is icvae.kl_gaussian_marginal:
        shift = v.mean(0)
        e, centred = np.expm1(v - shift), m - m.mean(0)
        excess = e.mean(0) + (centred**2).mean(0) * np.exp(-shift)
        return centred * np.exp(-shift) / (1 + excess) / n, (e - excess) / (1 + excess) / (2 * n)
    grad_m, grad_v = np.zeros_like(m), np.zeros_like(v)
    for i in range(n):
        difference = m[i] - m  # (n, d), to every j
        pull = difference * (np.exp(-v) + np.exp(-v[i]))
        grad_m[i] = pull.sum(0) / n**2
        grad_v[i] = 0.5 * (np.expm1(v[i] - v) - np.expm1(v - v[i]) - difference**2 * np.exp(-v[i])).sum(0) / n**2
    return grad_m, grad_v


def test_gradient_flows_through_the_batch_mean():
    """Stopping it would give a gradient that is wrong by many per cent."""
    z_mean, z_log_var = posterior(batch=32, d=4)
    _, by_pairs = gradients(icvae.kl_pairwise, z_mean, z_log_var)
    _, by_means = gradients(icvae.kl_marginal, z_mean, z_log_var)
    for a, b in zip(by_pairs, by_means, strict=True):
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(a)


@pytest.mark.parametrize("t", [-30.0, -1.0, -0.1, -0.099, -1e-5, 0.0, 1e-5, 0.099, 0.1, 1.0, 30.0])
def test_exp_residual(t):
    expected = 2 * kl_1d(0.0, t, 0.0, 0.0)
    assert np.isclose(float(exp_residual(np.float32(t))), 2 * kl_1d(0.0, float(np.float32(t)), 0.0, 0.0), rtol=2e-5, atol=1e-38), expected


def test_large_batch_needs_no_pairs():
    """At 65,536 codes one B x B matrix would need 16 GiB."""
    z_mean, z_log_var = posterior(batch=65_536, d=16)
    part = float(icvae.kl_marginal(z_mean[:512], z_log_var[:512]))
    assert np.isclose(float(icvae.kl_marginal(z_mean, z_log_var)), part, rtol=0.2)
    assert np.isclose(part, np.mean(array(icvae.kl_pairwise(z_mean[:512], z_log_var[:512]))), rtol=1e-4)


def test_one_code_only():
    z_mean, z_log_var = posterior(batch=1)
    assert float(icvae.kl_marginal(z_mean, z_log_var)) == 0
    assert float(icvae.kl_gaussian_marginal(z_mean, z_log_var)) == 0


def test_distances_of_the_means_when_variances_are_one():
    z_mean = posterior()[0]
    expected = 0.5 * cdist(z_mean, z_mean, "sqeuclidean")
    assert np.allclose(array(icvae.kl_pairwise(z_mean, np.zeros_like(z_mean))), expected, atol=1e-5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("loss", [*LOSSES, icvae.mutual_information], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize(
    "shapes",
    [((4,), (4,)), ((4, 2), (4, 3)), ((4, 2), (3, 2)), ((0, 2), (0, 2)), ((4, 0), (4, 0)), ((4, 2), (4, 1)), ((2, 2, 2), (2, 2, 2))],
)
def test_wrong_shapes_are_named(loss, shapes):
    with pytest.raises(ValueError) as error:
        loss(np.zeros(shapes[0], "float32"), np.zeros(shapes[1], "float32"))
    message = str(error.value)
    assert "z_mean" in message and "z_log_var" in message and str(shapes[0]) in message and str(shapes[1]) in message


def test_other_bad_input():
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(3, 4\)"):
        reconstruction_error(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="square"):
        pairwise_bound(np.zeros((3, 2)))


def test_integers_are_taken_as_floats():
    assert np.allclose(array(icvae.kl_prior(np.array([[1, 2]]), np.array([[0, 0]]))), [2.5])
