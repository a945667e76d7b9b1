"""Chapter 8: devices, processes and files give the training that one device in memory gives."""

import keras
import numpy as np
import pytest
from keras import ops

from icvae.cvae import jit, kl_prior, reconstruction_error
from icvae.invariance import kl_gaussian_marginal, kl_marginal
from icvae.scale import FileBatches, fixed_training, launch, share_of_batches, write_rows
from icvae.training import FAST, build_model

SCRIPT = """
import json, sys
import numpy as np
from icvae.scale import train_process

address, processes, process = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
x, c = rng.random((240, 12), dtype="float32"), np.eye(3, dtype="float32")[rng.integers(0, 3, 240)]
model, history = train_process(address, processes, process, x, c, batch_size=60)
print(json.dumps([history, [np.array(w).tolist() for w in model.encoder.get_weights()]]))
"""


def data(rows=240):
    """The arrays of SCRIPT."""
    rng = np.random.default_rng(0)
    return rng.random((rows, 12), dtype="float32"), np.eye(3, dtype="float32")[rng.integers(0, 3, rows)]


def trained(processes, devices=1):
    """SCRIPT as that many processes, each with that many virtual devices: what each printed."""
    if keras.backend.backend() == "torch":
        pytest.skip("the processes run on JAX; the tests on the other backends start them")
    pytest.importorskip("jax")
    return launch(SCRIPT, processes, devices)


@pytest.fixture(scope="module")
def alone():
    """One process with one device."""
    return trained(1)[0]


@pytest.mark.parametrize(("processes", "devices"), [(1, 2), (2, 1), (2, 2)])
def test_devices_and_processes_agree_with_one_device(alone, processes, devices):
    found = trained(processes, devices)
    assert all(one == found[0] for one in found)  # every process ends with the same model
    for name, values in alone[0].items():
        np.testing.assert_allclose(found[0][0][name], values, rtol=1e-4, err_msg=name)
    for one, other in zip(found[0][1], alone[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_process_that_fails_is_reported():
    with pytest.raises(RuntimeError, match="out of luck"):
        launch("import sys; sys.exit('out of luck' if sys.argv[3] == '1' else 0)", 2)


def test_much_output_blocks_nobody():
    found = launch("import sys; print('x' * 10**6, file=sys.stderr); print('x' * 10**6); print(sys.argv[3])", 2)
    assert found == [0, 1]


def test_one_process_agrees_with_a_plain_fit(alone):
    if keras.backend.backend() != "jax":
        pytest.skip("other backends draw other random numbers")
    _, history = fixed_training(*data(), batch_size=60)
    for name, values in alone[0].items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)


def test_shares_put_together_are_the_batches():
    array = np.arange(48).reshape(24, 2)
    shares = [share_of_batches(array, 6, 3, process) for process in range(3)]
    batches = [np.concatenate([share[2 * i : 2 * i + 2] for share in shares]) for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(batches), array)


@pytest.mark.parametrize(("rows", "batch_size", "processes", "process"), [(25, 6, 3, 0), (24, 6, 4, 0), (24, 6, 3, 3), (24, 6, 3, -1)])
def test_shares_must_be_even(rows, batch_size, processes, process):
    with pytest.raises(ValueError, match=r"multiple|process must be"):
        share_of_batches(np.zeros((rows, 2)), batch_size, processes, process)


@pytest.fixture
def files(tmp_path):
    x, c = data(250)  # the last batch is smaller
    for name, array in (("x", x), ("c", c)):
        write_rows(tmp_path / f"{name}.npy", np.array_split(array, 7), len(array))
    return tmp_path / "x.npy", tmp_path / "c.npy"


def test_training_from_files_is_training_from_memory(files):
    _, expected = fixed_training(*data(250), batch_size=60)
    model = build_model(FAST | {"beta": 1.0}, 12, 3)
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=jit())
    found = model.fit(FileBatches(*files, batch_size=60), epochs=2, shuffle=False, verbose=0).history
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


def test_batches_hold_each_row_once(files):
    batches = FileBatches(*files, batch_size=60)
    assert [len(batches[i][0]["x"]) for i in range(len(batches))] == [60, 60, 60, 60, 10]
    for name, array in zip("xc", data(250), strict=True):
        np.testing.assert_array_equal(np.concatenate([batches[i][0][name] for i in range(len(batches))]), array)


def test_bytes_are_scaled_to_float32(tmp_path):
    write_rows(tmp_path / "x.npy", [np.array([[0, 51], [255, 102]], "uint8")], 2)
    write_rows(tmp_path / "c.npy", [np.array([[0], [1]], "uint8")], 2)
    (batch,) = FileBatches(tmp_path / "x.npy", tmp_path / "c.npy", scale=1 / 255)[0]
    assert batch["x"].dtype == batch["c"].dtype == "float32"
    np.testing.assert_allclose(batch["x"], [[0, 0.2], [1, 0.4]], rtol=1e-6)


def test_files_that_do_not_fit_are_refused(tmp_path):
    shapes = {"a": (4, 3), "b": (5, 2), "flat": (4,), "none": (0, 3)}
    for name, shape in shapes.items():
        np.save(tmp_path / f"{name}.npy", np.zeros(shape))
    for x, c, batch_size in (("a", "b", 2), ("a", "flat", 2), ("none", "none", 2), ("a", "a", 0)):
        with pytest.raises(ValueError, match="must be"):
            FileBatches(tmp_path / f"{x}.npy", tmp_path / f"{c}.npy", batch_size)


BLOCKS = {
    "too few rows": ([np.zeros((3, 2))], 4),
    "another width": ([np.zeros((3, 2)), np.zeros((1, 3))], 4),
    "another type": ([np.zeros((3, 2)), np.zeros((1, 2), "int8")], 4),
    "images": ([np.zeros((2, 3, 3)), np.zeros((2, 3, 3))], 4),
    "numbers": ([np.zeros(4)], 4),
    "nothing": ([], 4),
    "nothing at all": ([], 0),
}


@pytest.mark.parametrize(("blocks", "rows"), BLOCKS.values(), ids=BLOCKS)
def test_a_file_is_written_whole_or_not_at_all(tmp_path, blocks, rows):
    (tmp_path / "x.npy").write_text("what was there before")
    with pytest.raises(ValueError, match=r"rows together|a block"):
        write_rows(tmp_path / "x.npy", iter(blocks), rows)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    assert (tmp_path / "x.npy").read_text() == "what was there before"


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_losses_compute_in_32_bits(kind):
    rng = np.random.default_rng(0)
    mean, log_var = rng.normal(size=(2, 300, 8)).astype("float32")
    inputs = [ops.cast(t, kind) for t in (mean, log_var - 12)]  # 1 / variance is beyond float16
    rounded = [ops.cast(t, "float32") for t in inputs]
    for loss in (kl_marginal, kl_gaussian_marginal, kl_prior, reconstruction_error):
        found = loss(*inputs)
        assert keras.backend.standardize_dtype(found.dtype) == "float32"
        np.testing.assert_allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(loss(*rounded)), rtol=1e-6)


def test_mixed_precision_trains_with_losses_in_32_bits():
    x, c = data()
    _, expected = fixed_training(x, c, batch_size=60)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, found = fixed_training(x, c, batch_size=60)
        assert keras.backend.standardize_dtype(model.encoder(x[:1])[0].dtype) == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=0.02)
