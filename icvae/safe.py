"""The Keras model under the models of the series: it checks its data before Keras is entered, and never loses its weights."""

# Plumbing. Keras finds a wrong width inside its compiled step, where JAX has already given the weights away (donated buffers), and
# reports a NaN as a number. `SafeModel` looks first, keeps a copy of all variables, and puts back what an exception or an interrupt took.

import keras
import numpy as np
from keras import ops

from .scores import labels_of

LARGEST = 1e4  # no value of a standardised table, and no pixel, is larger


def as_rows(name, array):
    """One array of the data as float32, with a first axis of rows. Raises ValueError for what can't be one."""
    if hasattr(array, "toarray"):
        raise ValueError(f"{name} is a sparse matrix: pass {name}.toarray()")
    array = array if isinstance(array, np.ndarray) else np.asarray(ops.convert_to_numpy(array))
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be numbers, got {array.dtype}")
    if array.ndim < 1 or len(array) == 0:
        raise ValueError(f"{name} has no rows: its shape is {array.shape}")
    return np.asarray(array, "float32")


def check_finite(name, array):
    """Raises ValueError that names row and column of the first value that is NaN, infinite or beyond `LARGEST`."""
    flat = array.reshape(len(array), -1)
    for wrong, what in ((~np.isfinite(flat), "is not finite"), (np.abs(flat) > LARGEST, f"is larger than {LARGEST:g}")):
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            advice = f": standardise the columns, ({name} - {name}.mean(0)) / {name}.std(0)" if np.isfinite(flat[row, column]) else ""
            raise ValueError(f"{name} {what} in row {row}, column {column}: {flat[row, column]}{advice}")


def expected_shapes(model):
    """Shapes of one row that the parts of a model prescribe: of x by the encoder, of c by the decoder, of y by the predictor."""
    parts = {
        "x": lambda: model.encoder.input_shape[1:],
        "c": lambda: model.decoder.input_shape[1][1:],
        "y": lambda: model.predictor.output_shape[1:],
    }
    shapes = {}
    for name, shape in parts.items():
        try:
            shapes[name] = tuple(shape())
        except (AttributeError, IndexError, TypeError, ValueError):  # no such part, or one that does not say
            continue
    if "c" not in shapes and getattr(model, "adversary", None) is not None:
        shapes["c"] = tuple(model.adversary.output_shape[1:])
    return shapes


def check_shape(name, array, shape):
    """Raises ValueError that says what is right, if the rows of an array don't have the shape; None stands for any length."""
    if len(array.shape) == len(shape) + 1 and all(n in (None, m) for n, m in zip(shape, array.shape[1:], strict=True)):
        return
    right = ", ".join("N" if n is None else str(n) for n in (None, *shape))
    advice = ""
    if name in "cy" and len(shape) == 1 and shape[0] > 1 and (array.ndim == 1 or array.shape[1:] == (1,)):
        advice = f": np.eye({shape[0]})[labels] makes one-hot rows of K = {shape[0]} classes"
    raise ValueError(f"{name} must have the shape ({right}) for this model, got {array.shape}{advice}")


def check_range(model, x):
    """Raises ValueError if x leaves [0, 1] while the decoder ends in a sigmoid, which can't reach it."""
    layers = getattr(getattr(model, "decoder", None), "layers", ())
    activation = getattr(layers[-1], "activation", None) if layers else None
    if activation is keras.activations.sigmoid and (x.min() < -0.01 or x.max() > 1.01):
        raise ValueError(
            f"x lies in [{x.min():g}, {x.max():g}], but the decoder ends in a sigmoid and can't leave [0, 1]: divide pixels by 255, "
            "or build the decoder with output_activation=None"
        )


class Keep(keras.callbacks.Callback):
    """Stops at the first epoch whose loss is not finite, before anything is stored; keeps a copy of the variables of the last good one."""

    def __init__(self, copies):
        super().__init__()
        self.copies = copies

    def on_epoch_end(self, epoch, logs=None):
        bad = [name for name, value in (logs or {}).items() if not np.all(np.isfinite(np.asarray(value, "float64")))]
        if bad:
            self.copies.spoilt = True
            raise ValueError(
                f"training stopped: {', '.join(bad)} not finite in epoch {epoch + 1}. The weights of the last finite epoch are back in "
                "the model. Standardise x, take a smaller learning rate or smaller weights"
            )
        self.copies.take()


class Copies:
    """NumPy copies of all variables of a model and its optimizer, to put back what was lost."""

    def __init__(self, model):
        self.model, self.spoilt = model, False
        self.take()

    def variables(self):
        optimizer = getattr(self.model, "optimizer", None)
        return [*self.model.variables, *(optimizer.variables if optimizer is not None else ())]

    def take(self):
        self.kept = {id(variable): np.array(ops.convert_to_numpy(variable)) for variable in self.variables()}

    def lost(self, variable):
        try:
            ops.convert_to_numpy(variable)
        except Exception:  # JAX: the value is None, or its buffer was donated
            return True
        return False

    def put_back(self):
        """All of them, if any is lost or a loss was not finite: never half of one state and half of another."""
        if self.spoilt or any(self.lost(variable) for variable in self.variables()):
            for variable in self.variables():  # what came after the copy are the optimizer's moments, which begin at 0
                variable.assign(self.kept.get(id(variable), np.zeros(variable.shape)))
        self.model.train_function = self.model.test_function = self.model.predict_function = None  # one may be half compiled
        self.model._jax_state = None  # of Keras's JAX trainer: a state of before
        self.model._jax_state_synced = True


def guarded(method, copies, *args, **options):
    """Call a method of Keras; whatever it raises, the variables are there afterwards."""
    try:
        return method(*args, **options)
    except BaseException:
        copies.put_back()
        raise


class SafeModel(keras.Model):
    """A Keras model whose data are a dict of arrays, checked before anything is changed; weights survive any exception or interrupt.

    data_names: the arrays that `fit` and `evaluate` need. call_names: those that `predict` needs. one_hot: those of data_names whose
    rows must be one-hot. `fit` stops at the first epoch whose
    loss is not finite and gives the weights of the last finite one back. Data that come batch by batch (a data set of TensorFlow, a
    PyDataset, a generator) can't be looked at before; for them holds the rest. sample_weight and class_weight are refused: see the message.
    """

    data_names, call_names, one_hot = ("x", "c"), ("x", "c"), ()

    def check(self, data, names, call):
        """The dict of arrays as float32. Raises ValueError that names the argument and says which call is right."""
        right = f"{call}({{{', '.join(f'{name!r}: {name}' for name in names)}}})"
        if hasattr(data, "toarray"):
            as_rows("x", data)  # raises
        if isinstance(data, np.ndarray | list | tuple) or ops.is_tensor(data):
            raise ValueError(f"this model takes a dict of arrays: {right}")
        if not isinstance(data, dict):
            return data  # batches, from a generator or a data set
        if missing := [name for name in names if name not in data]:
            raise ValueError(f"{', '.join(missing)} missing: {right}")
        arrays = {name: as_rows(name, array) for name, array in data.items()}
        for name, shape in expected_shapes(self).items():
            if name in arrays and name in self.data_names:
                check_shape(name, arrays[name], shape)
        rows = {name: len(array) for name, array in arrays.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"the arrays need one row for each sample, got {rows} rows")
        for name, array in arrays.items():
            check_finite(name, array)
        if "x" in arrays:
            check_range(self, arrays["x"])
        return arrays

    def check_training(self, data, call):
        """`check` of the arrays that a training needs; those named in `one_hot` must be one-hot rows."""
        for name in self.one_hot:
            if isinstance(data, dict) and name in data:
                labels_of(data[name], name)
        return self.check(data, self.data_names, call)

    def log_terms(self, terms, rows):
        """Show a batch's loss terms to `trackers`, metrics of their names; a smaller last batch counts less, as in Keras's own mean."""
        for tracker in self.trackers:
            tracker.update_state(terms[tracker.name], sample_weight=rows)

    def fit(self, x=None, y=None, validation_data=None, callbacks=None, **options):
        for name in ("sample_weight", "class_weight"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{name} is not supported: terms that compare rows have no weight for one. Draw the rows instead: "
                    "rows = rng.choice(N, N, p=weight / weight.sum())"
                )
        if y is not None:
            raise ValueError(f"pass one dict: fit({{{', '.join(f'{name!r}: {name}' for name in self.data_names)}}})")
        x = self.check_training(x, "fit")
        if isinstance(validation_data, dict):
            validation_data = (validation_data,)
        if isinstance(validation_data, tuple) and len(validation_data) == 1 and isinstance(validation_data[0], dict):
            validation_data = (self.check_training(validation_data[0], "validation_data="),)
        callbacks = callbacks if isinstance(callbacks, list | tuple) else [callbacks] if callbacks else []
        copies = Copies(self)
        callbacks = [Keep(copies), *callbacks]
        return guarded(super().fit, copies, x, validation_data=validation_data, callbacks=callbacks, **options)

    def evaluate(self, x=None, y=None, **options):
        if options.get("_use_cached_eval_dataset"):  # called by fit, which has checked and keeps copies
            return super().evaluate(x, y, **options)
        return guarded(super().evaluate, Copies(self), self.check_training(x, "evaluate"), y, **options)

    def predict(self, x, *args, **options):
        return guarded(super().predict, Copies(self), self.check(x, self.call_names, "predict"), *args, **options)

    def train_on_batch(self, x, y=None, **options):
        return guarded(super().train_on_batch, Copies(self), self.check_training(x, "train_on_batch"), y, **options)

    def test_on_batch(self, x, y=None, **options):
        return guarded(super().test_on_batch, Copies(self), self.check_training(x, "test_on_batch"), y, **options)

    def predict_on_batch(self, x):
        return guarded(super().predict_on_batch, Copies(self), self.check(x, self.call_names, "predict_on_batch"))


@keras.saving.register_keras_serializable("icvae")
class Part(keras.Model):
    """An encoder, a decoder or a head: a functional Keras model whose `predict` looks at the shapes first and never loses the weights."""

    def predict(self, x, *args, **options):
        arrays = x if isinstance(x, list | tuple) else [x]
        for array, expected in zip(arrays, self.inputs, strict=True):
            if hasattr(array, "toarray"):
                as_rows(expected.name, array)
            if hasattr(array, "shape"):
                check_shape(expected.name, array, tuple(expected.shape[1:]))
        return guarded(super().predict, Copies(self), x, *args, **options)
