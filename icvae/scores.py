"""How well a reader's answers fit the classes of held-out rows, and the checks of what measurements are given."""

# Plain NumPy, beside the chapters: chapter 4 explains the figures, this module computes them with their standard errors.
import numpy as np
from scipy.stats import rankdata


def labels_of(c, name="c"):
    """One-hot rows (N, K) -> integers (N,). `name` is for the message of the error.

    Raises ValueError if the rows are not one-hot, and says what to do.
    """
    c = np.asarray(c)
    if c.ndim != 2 or not np.all(np.isin(c, (0, 1))) or not np.all(c.sum(1) == 1):
        raise ValueError(
            f"{name} must be one-hot rows (N, K), got an array of shape {c.shape}: np.eye(K)[labels] makes one; "
            "cut a continuous factor into bins first"
        )
    return c.argmax(1)


def auc_of(score, positive):
    """AUC of a score (M,) for a boolean class (M,), and each row's part in its error: (float, (M,)).

    The norm of the parts is the standard error. Source: E. DeLong, D. DeLong, D. Clarke-Pearson 1988, Biometrics 44.
    """
    rank, within, count = rankdata(score), np.empty(len(score)), positive.sum()
    for part in (positive, ~positive):
        within[part] = rankdata(score[part])
    placed = (rank - within) / np.where(positive, len(score) - count, count)
    placed = np.where(positive, placed, 1 - placed)
    value = placed[positive].mean()
    return value, (placed - value) / np.where(positive, count, len(score) - count)


def reader_figures(log_p, c):
    """How well a reader's log p(c|z) (M, K) fits the classes c (M, K) of held-out codes: a dict of floats.

    nats: H(c) minus the cross-entropy, a lower bound on I(z;c). accuracy. balanced: the mean recall of the classes when
    p(c|z) / p(c) decides; chance is 1 / K. auc: class against rest, mean over the classes; chance is 1/2. Beside each its
    standard error over independent rows, under the name + "_error". Classes without a row in c are left out.
    """
    present = np.flatnonzero(c.sum(0))
    c, log_p = c[:, present], log_p[:, present]
    share, y, root = c.mean(0), c.argmax(1), len(c) ** 0.5
    nats = log_p[np.arange(len(c)), y] - np.log(share[y])
    hit, recalled = log_p.argmax(1) == y, (log_p - np.log(share)).argmax(1) == y
    recall = c.T @ recalled / c.sum(0)
    scatter = np.sqrt(np.sum(recall * (1 - recall) / c.sum(0))) / len(recall)
    found = {"nats": (nats.mean(), nats.std() / root), "accuracy": (hit.mean(), hit.std() / root), "balanced": (recall.mean(), scatter)}
    if len(present) > 1:
        aucs, parts = zip(*(auc_of(log_p[:, k], y == k) for k in range(len(share))), strict=True)
        found["auc"] = np.mean(aucs), np.linalg.norm(np.mean(parts, 0))
    else:  # one class only: nothing to tell apart
        found["auc"] = 0.5, 0.0
    return {name + end: float(v) for name, pair in found.items() for end, v in zip(("", "_error"), pair, strict=True)}


def _finite(names, arrays):
    """Raises ValueError that names the array, the row and the column of the first number that is not finite."""
    for name, array in zip(names, arrays, strict=True):
        if not np.all(np.isfinite(array)):
            row, column = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(f"{name} is not finite in row {row}, column {column}: {array[row, column]}")


def check_leak(z_mean, z_log_var, c, z_new, c_new):
    """The five as float64: posteriors of known rows (N, d) with c (N, K), codes of new rows (M, d) with c_new (M, K).

    Raises ValueError if the shapes don't fit, c is not one-hot, a number is not finite, or a class of c_new is not known.
    """
    labels_of(c, "c"), labels_of(c_new, "c_new")
    arrays = [np.asarray(a, "float64") for a in (z_mean, z_log_var, c, z_new, c_new)]
    shapes = [a.shape for a in arrays]
    (rows, z_dim), (new, classes) = (*shapes[0], 0, 0)[:2], shapes[4]
    if shapes != [(rows, z_dim)] * 2 + [(rows, classes), (new, z_dim), (new, classes)] or rows < 8:
        raise ValueError(
            "need z_mean, z_log_var (N, d) and c (N, K) of N >= 8 known rows, z_new (M, d) and c_new (M, K) of new ones, "
            f"got the shapes {shapes}"
        )
    _finite(("z_mean", "z_log_var", "c", "z_new", "c_new"), arrays)
    for k in np.flatnonzero(arrays[4].any(0) & (arrays[2].sum(0) < 2)):
        raise ValueError(f"class {k} of c_new has {arrays[2].sum(0)[k]:.0f} known rows in c; two are the least")
    return arrays


def check_codes(z_train, c_train, z_test, c_test):
    """The four as float64: z (N, d) with c (N, K), for probes to learn from and to be scored on.

    Raises ValueError if the shapes don't fit, c is not one-hot, a number is not finite, or there is nothing to learn.
    """
    labels_of(c_train, "c_train"), labels_of(c_test, "c_test")
    arrays = [np.asarray(a, "float64") for a in (z_train, c_train, z_test, c_test)]
    shapes = [a.shape for a in arrays]
    fits = len(shapes[0]) == len(shapes[2]) == 2 and shapes[0][1] == shapes[2][1] and shapes[1][1] == shapes[3][1]
    if not fits or shapes[0][0] != shapes[1][0] or shapes[2][0] != shapes[3][0]:
        raise ValueError(f"z must be (N, d) with one row of c (N, K) for each row, got z_train, c_train, z_test, c_test: {shapes}")
    _finite(("z_train", "c_train", "z_test", "c_test"), arrays)
    known, asked = arrays[1].sum(0), arrays[3].sum(0)
    if np.sum(known > 0) < 2:
        raise ValueError(f"c_train needs rows of two classes to tell apart, has {known.astype(int)} of each")
    for k in np.flatnonzero((asked > 0) & (known == 0)):
        raise ValueError(f"class {k} of c_test has no row in c_train")
    return arrays


def in_words(c_train, posteriors):
    """Which readers took part and which classes are too small to be read well: {"readers": ..., "notes": ...}."""
    readers = "five probes and the readers that know the posteriors"
    if not posteriors:
        readers = "five probes only, no posteriors given: more can be read than this"
    counts = c_train.sum(0).astype(int)
    few = [f"class {k} has only {n} known rows" for k, n in enumerate(counts) if 0 < n < 20]
    return {"readers": readers, "notes": "; ".join(few)}
