"""Files of trainings: checkpoints that resume after an interrupt, trained weights; never half a file."""

# Plumbing. A file is written under a temporary name of its process and then renamed, so two processes may train the same model at
# once. A checkpoint says what it belongs to, and another training is refused with what differs. Nothing that is not finite is stored.

import json
import os
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
from keras import ops


def check_writable(folder):
    """Make the folder, if need be. Raises OSError, with what to do, if nothing can be written to it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"can't write to {folder} ({error}): set ICVAE_DATA_DIR to a folder that can be written to") from error


def in_16_bits(array):
    """A float32 array as float16 where that is close enough, else as it is: large or tiny numbers, such as variances, stay."""
    with np.errstate(over="ignore"):
        short = array.astype("float16")
    close = np.abs(short.astype("float32") - array) <= 1e-3 * np.abs(array) + 1e-6
    return short if np.all(close) else array


def save_state(path, variables, meta, short=False):
    """Write variables and a dict `meta` to one npz file, under a temporary name that is then renamed: never half a file.

    short: in 16 bits where they suffice. Raises ValueError, and leaves the old file, if a variable is not finite.
    """
    path = Path(path)
    arrays = [np.asarray(ops.convert_to_numpy(v)) for v in variables]
    for variable, array in zip(variables, arrays, strict=True):
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise ValueError(f"{getattr(variable, 'path', 'a variable')} is not finite; {path} was not written")
    if short:
        arrays = [in_16_bits(a) if a.dtype == "float32" else a for a in arrays]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(part, "wb") as file:
            np.savez(file, *arrays, meta=json.dumps(meta))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_state(path, variables=None, more=False):
    """Read such a file; assign its arrays to `variables`, if given. Returns meta.

    more: the file may hold further arrays behind those of the variables, for example of a reader that was trained along. Raises
    FileNotFoundError if there is no file, ValueError if it is damaged or its shapes are not those of the variables.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays, meta = [file[f"arr_{i}"] for i in range(len(file.files) - 1)], json.loads(str(file["meta"]))
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it, or restore it from the repository.") from error
    if variables is not None and more:
        arrays = arrays[: len(variables)]
    shapes = [tuple(a.shape) for a in arrays]
    if variables is not None and shapes != [tuple(v.shape) for v in variables]:
        raise ValueError(f"{path} holds arrays of shapes {shapes}, the model needs {[tuple(v.shape) for v in variables]}")
    for variable, array in zip(variables or [], arrays, strict=False):
        variable.assign(array)
    return meta


def data_key(key, *arrays):
    """A number that changes with the contents of the arrays."""
    for array in arrays:
        key = zlib.crc32(np.ascontiguousarray(array), key)
    return key


def settings_key(settings, x, c):
    """A short name for these settings on these data, x and c: eight hexadecimal digits."""
    return f"{data_key(zlib.crc32(json.dumps(settings, sort_keys=True).encode()), x, c):08x}"


def describe_part(part):
    """A model or layer in words: its layers with what decides their result, names left out (Keras numbers them as it goes)."""
    shown = ("units", "filters", "kernel_size", "strides", "activation", "rate", "terms", "bank_size", "steps", "seed")
    words = []
    for layer in getattr(part, "layers", None) or [part]:
        config = layer.get_config() if type(layer).get_config is not keras.layers.Layer.get_config else {}
        details = [f"{name}={config[name]}" for name in shown if config.get(name) is not None]
        words.append(f"{type(layer).__name__}({', '.join(details)})")
    return " > ".join(words)


def describe(model):
    """What a model is: class, weights of the terms, seed, architecture, shapes of its weights; a dict of JSON's types."""
    sampling = getattr(model, "sampling", None)
    found = {"class": type(model).__name__, "seed": getattr(sampling, "seed", None)}
    found |= {f"weight of {name}": float(value) for name, value in getattr(model, "term_weights", {}).items()}
    for index, part in enumerate(model.layers):
        found[f"part {index}"] = describe_part(part)
    return {**found, "shapes": str([tuple(w.shape) for w in model.weights])}


class Checkpoint(keras.callbacks.Callback):
    """Keep the history of all epochs and, if a path is given, save everything after each epoch, so that training can resume.

    training: a dict of what the training depends on; a file of another training is refused at once, with what differs.
    """

    def __init__(self, path=None, training=None):
        super().__init__()
        self.path, self.training, self.history = path, json.loads(json.dumps(training or {})), {}
        self.exists = path is not None and Path(path).exists()
        if path is not None:
            check_writable(Path(path).parent)
        if self.exists:
            self.check()

    def check(self):
        """Raises ValueError that names what differs, if the file is the checkpoint of another training."""
        stored = load_state(self.path).get("training", {})
        names = sorted(set(stored) | set(self.training))
        differ = [f"{n}: {stored.get(n)} there, {self.training.get(n)} here" for n in names if stored.get(n) != self.training.get(n)]
        if differ:
            raise ValueError(f"{self.path} is the checkpoint of another training ({'; '.join(differ)}); remove it or name another file")

    def restore(self, model):
        """Load the file, if there is one, into the compiled model. Returns the number of epochs done."""
        if not self.exists:
            return 0
        model.optimizer.build(model.trainable_variables)
        self.history = load_state(self.path, model.variables + model.optimizer.variables)["history"]
        print(f"resuming after epoch {len(self.history['loss'])}")
        return len(self.history["loss"])

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(round(float(value), 4))
        if self.path is not None:  # weights, random numbers and optimizer
            meta = {"training": self.training, "history": self.history}
            save_state(self.path, self.model.variables + self.model.optimizer.variables, meta)
