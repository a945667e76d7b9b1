"""Data are checked before Keras is entered, and nothing that happens inside costs the weights."""

import keras
import numpy as np
import pytest
from scipy import sparse

import icvae

RNG = np.random.default_rng(0)
X = RNG.random((60, 6)).astype("float32")
C = np.eye(3, dtype="float32")[RNG.integers(0, 3, 60)]
Y = np.eye(2, dtype="float32")[RNG.integers(0, 2, 60)]


def model(kind="ICVAE", **options):
    icvae.set_seed(0)
    encoder, decoder = icvae.build_encoder(6, 2, (8,)), icvae.build_decoder(2, 3, 6, (8,), output_activation="sigmoid")
    if kind == "predictor":
        return icvae.InvariantPredictor(encoder, decoder, icvae.build_head(2, 2, (8,)), seed=0)
    return getattr(icvae, kind)(encoder, decoder, seed=0, **options)


def fitted(kind="ICVAE"):
    made = model(kind)
    made.compile(keras.optimizers.Adam(1e-3), jit_compile=False if keras.backend.backend() != "jax" else "auto")
    made.fit(data(kind), epochs=1, verbose=0)
    return made


def data(kind="ICVAE", **changed):
    return {"x": X, "c": C, **({"y": Y} if kind == "predictor" else {}), **changed}


def weights(made):
    return [np.array(keras.ops.convert_to_numpy(w)) for w in made.weights]


def alive(made, before, kind="ICVAE"):
    """The weights are those of before, and the model can be used and trained."""
    assert all(np.array_equal(a, b) for a, b in zip(before, weights(made), strict=True))
    assert np.isfinite(made.predict(data(kind), verbose=0)).all()
    made.fit(data(kind), epochs=1, verbose=0)
    assert not np.array_equal(before[0], weights(made)[0])


BAD = {
    "width of x": (lambda: data(x=X[:, :5]), r"x must have the shape \(N, 6\) for this model, got \(60, 5\)"),
    "width of c": (lambda: data(c=C[:, :2]), r"c must have the shape \(N, 3\)"),
    "integer c": (lambda: data(c=C.argmax(1)), r"np.eye\(3\)\[labels\]"),
    "c (N, 1)": (lambda: data(c=C.argmax(1)[:, None]), r"np.eye\(3\)\[labels\]"),
    "rows": (lambda: data(x=X[:50]), "one row for each sample"),
    "sparse": (lambda: data(x=sparse.csr_matrix(X)), r"pass x.toarray\(\)"),
    "missing": (lambda: {"x": X}, "c missing"),
    "NaN": (lambda: data(x=np.where(np.arange(360).reshape(60, 6) == 75, np.nan, X)), "row 12, column 3"),
    "pixels": (lambda: data(x=X * 255), "divide pixels by 255"),
    "income": (lambda: data(x=X * np.array([1, 1, 1, 1, 5e5, 1])), "column 4"),
    "text": (lambda: data(c=np.full((60, 3), "a")), "c must be numbers"),
    "empty": (lambda: data(x=X[:0], c=C[:0]), "no rows"),
}


@pytest.mark.parametrize("kind", ["ICVAE", "predictor"])
def test_bad_data_are_named_and_the_model_lives(kind):
    made = fitted(kind)
    before = weights(made)
    for case, (bad_part, message) in BAD.items():
        bad = {**data(kind), **bad_part()}
        if case == "missing":
            bad.pop("c")
        for call in (made.fit, made.evaluate, made.train_on_batch):
            with pytest.raises(ValueError, match=message):
                call(bad)
    alive(made, before, kind)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_wrong_width_in_a_part_costs_nothing(part):
    """The parts are Keras models of their own, and `encoder.predict` is what most cells call."""
    made = fitted()
    before, wrong = weights(made), X[:, :5] if part == "encoder" else [np.zeros((4, 3)), C[:4]]
    with pytest.raises(ValueError, match="for this model"):
        getattr(made, part).predict(wrong, verbose=0)
    alive(made, before)


def test_calls_with_bare_arrays_say_the_right_one():
    made = fitted()
    for call, right in (
        (lambda: made.fit(X, C), r"fit\(\{'x': x, 'c': c\}\)"),
        (lambda: made.predict(X), r"predict\(\{'x': x, 'c': c\}\)"),
    ):
        with pytest.raises(ValueError, match=right):
            call()
    with pytest.raises(ValueError, match=r"pass x.toarray\(\)"):
        made.predict(sparse.csr_matrix(X))
    with pytest.raises(ValueError, match="pass one dict"):
        made.fit(data(), C)


def test_held_out_data_are_checked_too():
    made = fitted()
    with pytest.raises(ValueError, match="for this model"):
        made.fit(data(), validation_data=(data(x=X[:, :4]),), verbose=0)


@pytest.mark.parametrize("option", [{"sample_weight": np.ones(60)}, {"class_weight": {0: 1.0}}])
@pytest.mark.parametrize("kind", ["CVAE", "predictor"])
def test_weights_of_rows_are_refused_by_name(kind, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is not supported"):
        fitted(kind).fit(data(kind), verbose=0, **option)


class Bomb(keras.layers.Layer):
    """Passes its input on; raises when armed, while the step is traced."""

    armed = False

    def call(self, h):
        if Bomb.armed:
            raise RuntimeError("inside the step")
        return h


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "train_on_batch"])
def test_an_exception_inside_the_step_costs_nothing(method, monkeypatch):
    encoder = icvae.build_encoder(6, 2, (8,))
    armed = keras.Model(encoder.input, encoder(Bomb()(encoder.input)))
    made = icvae.CVAE(armed, icvae.build_decoder(2, 3, 6, (8,)), seed=0)
    made.compile(keras.optimizers.Adam(1e-3))
    before = weights(made)
    monkeypatch.setattr(Bomb, "armed", True)
    with pytest.raises(RuntimeError, match="inside the step"):
        getattr(made, method)(data())
    monkeypatch.setattr(Bomb, "armed", False)
    alive(made, before)


class Stop(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            raise KeyboardInterrupt

    on_predict_batch_begin = on_test_batch_begin = on_train_batch_begin


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("batch", [0, 3])
def test_an_interrupt_between_steps_costs_nothing(method, batch):
    made = fitted()
    with pytest.raises(KeyboardInterrupt):
        getattr(made, method)(data(), batch_size=10, callbacks=[Stop(batch)], verbose=0)
    assert all(np.isfinite(w).all() for w in weights(made))
    made.fit(data(), epochs=1, verbose=0)
    assert np.isfinite(made.predict(data(), verbose=0)).all()


def test_an_interrupt_within_a_step_costs_at_most_the_epoch(monkeypatch):
    """The step has taken the state (on JAX its buffers are gone) and never returns."""
    made = fitted()
    before, real = weights(made), made.train_function

    def taken(*args):
        real(*args)  # on JAX: donates the buffers
        raise KeyboardInterrupt

    monkeypatch.setattr(made, "make_train_function", lambda force=False: setattr(made, "train_function", taken))
    with pytest.raises(KeyboardInterrupt):
        made.fit(data(), epochs=2, verbose=0)
    monkeypatch.undo()
    made.train_function = None
    if keras.backend.backend() == "jax":
        assert all(np.array_equal(a, b) for a, b in zip(before, weights(made), strict=True))
    made.fit(data(), epochs=1, verbose=0)
    assert np.isfinite(made.predict(data(), verbose=0)).all()


def test_training_stops_at_the_first_loss_that_is_not_finite():
    """From a generator, which can't be looked at before: the last finite weights come back."""
    made = fitted()

    def batches():
        for index in range(100):
            yield ({"x": X[:30] * (np.nan if index >= 2 else 1), "c": C[:30]},)

    seen = []

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(weights(self.model))

    with pytest.raises(ValueError, match="not finite in epoch 2"):
        made.fit(batches(), steps_per_epoch=2, epochs=4, verbose=0, callbacks=[Record()])
    assert len(seen) == 1  # nothing that is not finite reaches another callback
    alive(made, seen[0])


@pytest.mark.parametrize("kind", ["float64", "float16", "uint8"])
def test_other_types_are_taken(kind):
    made = fitted()
    x, c = (X > 0.5).astype(kind), C.astype(kind)
    made.fit({"x": x, "c": c}, epochs=1, verbose=0)
    assert np.isfinite(made.train_on_batch({"x": x, "c": c})[0])
    assert np.allclose(made.predict({"x": x, "c": c}, verbose=0), np.asarray(keras.ops.convert_to_numpy(made({"x": x, "c": c}))), atol=1e-5)


def test_losses_take_two_float_types():
    wide, narrow = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 3)).astype("float32")
    for loss in (icvae.reconstruction_error, icvae.kl_prior, icvae.kl_pairwise, icvae.kl_marginal, icvae.kl_gaussian_marginal):
        mixed, same = loss(wide, narrow), loss(wide.astype("float32"), narrow)
        assert np.allclose(keras.ops.convert_to_numpy(mixed), keras.ops.convert_to_numpy(same), rtol=1e-4)


def test_float64_batches_of_a_data_set_are_taken():
    tf = pytest.importorskip("tensorflow")
    made = fitted()
    batches = tf.data.Dataset.from_tensor_slices(({"x": X.astype("float64"), "c": C.astype("float64")},)).batch(20)
    history = made.fit(batches, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_saved_and_loaded(tmp_path):
    made = fitted()
    made.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert np.allclose(again.predict(data(), verbose=0), made.predict(data(), verbose=0), atol=1e-6)
