"""The bracket of I(z;c), its readers and their figures, against other code in float64 and known truths."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import icvae
from icvae import evaluation, scores
from icvae.evaluation import own_included, parity_bound, sample_codes, strongest_reader, toy_leak, toy_posteriors


def posteriors(rows=400, classes=3, shift=1.0, seed=0, d=3):
    """Gaussians with different widths whose class moves the mean: z_mean, z_log_var (rows, d), c (rows, classes)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    z_mean = rng.normal(size=(rows, d))
    z_mean[:, 0] += shift * y
    return z_mean, rng.normal(-1, 0.7, size=(rows, d)), np.eye(classes)[y]


def log_scores(z, z_mean, z_log_var, c, widen):
    """`class_scores` by other code: a double loop over codes and rows, scipy's Gaussian, its constant taken off."""
    found = np.full((len(z), c.shape[1]), -np.inf)
    for i, code in enumerate(z):
        for m, v, row in zip(z_mean, np.exp(z_log_var) + widen, c, strict=True):
            log_q = stats.norm.logpdf(code, m, np.sqrt(v)).sum() + 0.5 * len(m) * np.log(2 * np.pi)
            found[i, row.argmax()] = np.logaddexp(found[i, row.argmax()], log_q)
    return found


@pytest.mark.parametrize("widen", [0.0, 0.12])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_class_scores_agree_with_a_loop(widen, shift):
    z_mean, z_log_var, c = posteriors(60)
    z = sample_codes(z_mean, z_log_var, 1)[:20]
    found = evaluation.class_scores(z + shift, z_mean + shift, z_log_var, c, widen, block=7)
    assert np.allclose(found, log_scores(z, z_mean, z_log_var, c, widen), atol=2e-4)


def test_narrow_posteriors_are_computed_in_float64():
    z_mean, _, c = posteriors(60)
    z, z_log_var = z_mean[:20] + 1e-5, np.full_like(z_mean, -18.0)
    found = evaluation.class_scores(z, z_mean, z_log_var, c)
    assert np.allclose(found.max(1), log_scores(z, z_mean, z_log_var, c, 0).max(1), rtol=1e-6)


def test_own_included_agrees_with_a_loop():
    """The mean over all rows of log q_c(z) - log q(z), own posterior included."""
    z_mean, z_log_var, c = posteriors(50)
    order = np.random.default_rng([0, 8]).permutation(50)
    z = sample_codes(z_mean[order], z_log_var[order], 20)
    log_joint = log_scores(z, z_mean, z_log_var, c, 0)
    log_class = log_joint - np.log(c.sum(0))
    log_all = np.logaddexp.reduce(log_joint, axis=1) - np.log(50)
    right = np.mean(log_class[np.arange(50), c[order].argmax(1)] - log_all)
    assert np.isclose(own_included(z_mean, z_log_var, c)[0], right, atol=1e-5)


@pytest.mark.parametrize("kind", [0.5, 0.02, "bins"])
def test_the_bracket_holds_the_truth_and_closes(kind):
    rng, truth, widths = np.random.default_rng(0), toy_leak(kind), []
    z_mean, z_log_var, c = toy_posteriors(6000, kind, rng)
    new = sample_codes(z_mean, z_log_var, 3), c
    for size in (300, 3000):
        tried = [icvae.leak_bounds(*toy_posteriors(size, kind, rng), *new, network=False, seed=seed) for seed in range(3)]
        lower, upper = (np.mean([found[side] for found in tried]) for side in ("lower", "upper"))
        assert lower < truth + 3 * tried[0]["lower_error"] and upper > truth - 2 * tried[0]["upper_error"]
        widths.append(upper - lower)
    assert widths[1] < 0.6 * widths[0]


def test_toy_leak_by_monte_carlo():
    """The stated truth of the toy, by another road: classes and codes are drawn, the densities of both classes are known."""
    rng, share = np.random.default_rng(0), 0.02
    c = rng.random(400_000) < share
    z = c + np.sqrt(1.25) * rng.normal(size=len(c))
    a, b = stats.norm.pdf(z, 1, 1.25**0.5), stats.norm.pdf(z, 0, 1.25**0.5)
    estimate = np.mean(np.log(np.where(c, a, b) / (share * a + (1 - share) * b)))
    assert np.isclose(toy_leak(share), estimate, atol=5e-4)


def test_identical_codes_give_nothing():
    zero, c = np.zeros((1500, 4)), posteriors(1500)[2]
    found = icvae.leak_bounds(zero[:1000], zero[:1000], c[:1000], np.random.default_rng(0).normal(size=(500, 4)), c[1000:])
    assert 0 <= found["lower"] < 0.02 and abs(found["upper"]) < 1e-6 and abs(found["auc"] - 0.5) < 0.06


def test_codes_that_copy_c_give_its_entropy():
    c = posteriors(1500)[2]
    z_mean, z_log_var = np.pad(5 * c, ((0, 0), (0, 1))), np.full((1500, 4), -4.0)
    z_new = sample_codes(z_mean, z_log_var)[1000:]
    found = icvae.leak_bounds(z_mean[:1000], z_log_var[:1000], c[:1000], z_new, c[1000:])
    for side, share in (("lower", c[1000:].mean(0)), ("upper", c[:1000].mean(0))):
        assert np.isclose(found[side], -np.sum(share * np.log(share)), atol=5e-3)
    assert found["accuracy"] == found["balanced"] == found["auc"] == 1


def test_bounds_do_not_depend_on_the_scale_of_the_code():
    z_mean, z_log_var, c = posteriors(600)
    z = sample_codes(z_mean, z_log_var, 1)
    scale, shift = np.array([10.0, 0.1, 3.0]), 50.0
    found = [
        icvae.leak_bounds(m[:400], v[:400], c[:400], code[400:], c[400:], network=False)
        for m, v, code in ((z_mean, z_log_var, z), (z_mean * scale + shift, z_log_var + 2 * np.log(scale), z * scale + shift))
    ]
    assert np.isclose(found[0]["lower"], found[1]["lower"], atol=1e-3) and np.isclose(found[0]["upper"], found[1]["upper"], atol=0.02)


def test_the_network_reads_what_it_should():
    """A leak in the sign of a product, which posteriors of few rows and linear rules hardly see."""
    rng = np.random.default_rng(0)
    z_mean = rng.normal(size=(3000, 2))
    c, z_log_var = np.eye(2)[(z_mean.prod(1) > 0).astype(int)], np.full((3000, 2), -4.0)
    found = icvae.leak_bounds(z_mean[:2000], z_log_var[:2000], c[:2000], sample_codes(z_mean, z_log_var)[2000:], c[2000:])
    assert found["accuracy"] > 0.9 and 0.35 < found["lower"] < found["upper"] <= np.log(2) + 1e-3


def test_figures_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.choice(3, 500, p=(0.6, 0.3, 0.1))
    log_p = evaluation.log_probabilities(rng.normal(size=(500, 3)).round(1) + np.eye(3)[y])
    found = scores.reader_figures(log_p, np.eye(3)[y])
    assert np.isclose(found["accuracy"], np.mean(log_p.argmax(1) == y))
    lifted = (log_p - np.log(np.bincount(y) / 500)).argmax(1)
    assert np.isclose(found["balanced"], balanced_accuracy_score(y, lifted))
    assert np.isclose(found["auc"], np.mean([roc_auc_score(y == k, log_p[:, k]) for k in range(3)]))


def test_standard_errors_are_the_spread_over_samples():
    """Of 200 independent samples: accuracy, balanced accuracy and AUC scatter as their errors say."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        y = (rng.random(300) < 0.2).astype(int)
        score = rng.normal(size=300) + y
        log_p = np.stack([-np.log1p(np.exp(score - 1)), -np.log1p(np.exp(1 - score))], 1)
        found.append(scores.reader_figures(log_p, np.eye(2)[y]))
    for name in ("accuracy", "balanced", "auc", "nats"):
        spread, stated = np.std([f[name] for f in found]), np.mean([f[f"{name}_error"] for f in found])
        assert 0.8 < stated / spread < 1.25, name


def test_a_rare_shifted_group_is_seen():
    """Where accuracy says nothing, balanced accuracy and AUC do."""
    rng = np.random.default_rng(0)
    c = np.eye(2)[(rng.random(8000) < 0.1).astype(int)]
    z = rng.normal(size=(8000, 2)) + c[:, 1:]
    found = icvae.probe_leakage(z[:4000], c[:4000], z[4000:], c[4000:])
    assert found["strongest"] < found["chance"] + 0.015 and found["auc"] > 0.75 and found["balanced"] > 0.65
    assert found["auc_error"] < 0.03


def test_probe_leakage_says_which_readers_took_part():
    z_mean, z_log_var, c = posteriors(600)
    z = sample_codes(z_mean, z_log_var)
    without = icvae.probe_leakage(z[:400], c[:400], z[400:], c[400:])
    assert "no posteriors" in without["readers"] and "posterior" not in without and "upper" not in without
    known = z_mean[:400], z_log_var[:400]
    with_them = icvae.probe_leakage(z[:400], c[:400], z[400:], c[400:], posteriors=known)
    assert "know the posteriors" in with_them["readers"] and with_them["lower"] < with_them["upper"]
    assert with_them["strongest"] >= max(with_them["posterior"], without["strongest"] - 1e-9)


@pytest.mark.parametrize("rows", [40, 700])
def test_few_rows_and_a_lonely_class(rows):
    """Probes that can run do, and the note names the class."""
    z_mean, _, c = posteriors(rows, classes=2)
    c = np.concatenate([c, np.zeros((rows, 1))], 1)
    c[0] = (0, 0, 1)
    found = icvae.probe_leakage(z_mean, c, z_mean[1:30], c[1:30])
    assert "class 2 has only 1 known rows" in found["notes"] and 0 <= found["strongest"] <= 1


def test_bad_input_is_named():
    z_mean, z_log_var, c = posteriors(60)
    z = sample_codes(z_mean, z_log_var)
    labels, broken = c.argmax(1), z_mean.copy()
    broken[7, 2] = np.nan
    for message, call in {
        "c must be one-hot": lambda: icvae.leak_bounds(z_mean, z_log_var, labels, z, c),
        "c_new must be one-hot": lambda: icvae.leak_bounds(z_mean, z_log_var, c, z, labels[:, None]),
        "bins": lambda: icvae.leak_bounds(z_mean, z_log_var, z_mean, z, c),
        "z_log_var": lambda: icvae.leak_bounds(z_mean, z_log_var[:5], c, z, c),
        "z_mean is not finite in row 7, column 2": lambda: icvae.leak_bounds(broken, z_log_var, c, z, c),
        "class 1 of c_new": lambda: icvae.leak_bounds(z_mean, z_log_var, np.eye(3)[labels * 2 % 4], z, np.eye(3)[[1] * 60]),
        "c_train must be one-hot": lambda: icvae.probe_leakage(z, labels, z, c),
        "two classes": lambda: icvae.probe_leakage(z, np.eye(3)[[0] * 60], z, np.eye(3)[[0] * 60]),
        "class 2 of c_test has no row": lambda: icvae.probe_leakage(z, np.eye(3)[labels % 2], z, c),
        "not finite": lambda: icvae.probe_leakage(broken, c, z, c),
        "c_known|c must be one-hot": lambda: icvae.posterior_probe(z, c, z_mean, z_log_var, labels),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_reader_is_blind_to_new_classes():
    """What the reader says does not depend on the classes of the codes that it is scored on."""
    z_mean, z_log_var, c = posteriors(400)
    read = strongest_reader(z_mean, z_log_var, c, network=False)
    log_p = read(np.zeros((2, 3)))
    assert log_p.shape == (2, 3) and np.allclose(np.exp(log_p).sum(1), 1) and np.allclose(log_p[0], log_p[1])


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.1, 0.9), (0.2, 0.3)])
def test_parity_bound_holds_for_discrete_codes(shares):
    """Any decision on a code of five values: the largest gap is the total variation, which the bound exceeds."""
    rng, rest = np.random.default_rng(0), 1 - sum(shares)
    share = np.array([*shares, rest])[: 2 if rest < 1e-9 else 3]
    for _ in range(200):
        q = rng.dirichlet(np.full(5, rng.uniform(0.3, 3)), size=len(share))
        information = np.sum(share[:, None] * q * np.log(q / (share @ q)))
        gap = 0.5 * np.abs(q[0] - q[1]).sum()
        assert gap <= parity_bound(information, shares) + 1e-9
    assert np.isclose(parity_bound(0.02), 0.2) and parity_bound(9.0) == 1.0


def test_parity_bound_refuses_nonsense():
    for bad in ((-0.1,), (0.1, (0.0, 1.0)), (0.1, (0.7, 0.7)), (float("nan"),)):
        with pytest.raises(ValueError, match="shares"):
            parity_bound(*bad)
