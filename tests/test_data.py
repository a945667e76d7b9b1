"""The loader: what it returns, and what it does with truncated, altered, missing and hanging sources."""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest

from icvae import cvae, load_data


def fake_mnist():
    """Small arrays under the names of MNIST."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (30, 28, 28), dtype="uint8"),
        "y_train": rng.integers(0, 10, 30, dtype="uint8"),
        "x_test": rng.integers(0, 256, (20, 28, 28), dtype="uint8"),
        "y_test": rng.integers(0, 10, 20, dtype="uint8"),
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, no cache of Keras, no choice in the environment."""
    monkeypatch.setenv("ICVAE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("ICVAE_DATASET", raising=False)
    return tmp_path


@pytest.fixture
def intact(folder, monkeypatch):
    """A local mnist.npz whose arrays have the hashes that the loader expects."""
    arrays = fake_mnist()
    hashes = {key: cvae.hashlib.sha256(value.tobytes()).hexdigest() for key, value in arrays.items()}
    monkeypatch.setattr(cvae, "MNIST_SHA256", hashes)
    np.savez_compressed(folder / "mnist.npz", **arrays)
    return folder / "mnist.npz"


def offline(monkeypatch):
    monkeypatch.setattr(cvae, "reachable", lambda url, timeout=5.0: False)


def check_arrays(data):
    for x, c in data:
        assert x.dtype == c.dtype == np.float32 and x.shape == (len(c), 784) and c.shape[1] == 10
        assert x.min() >= 0 and x.max() <= 1 and np.all(c.sum(1) == 1) and set(np.unique(c)) == {0, 1}


def test_digits(capsys):
    train, test = load_data("digits")
    check_arrays((train, test))
    assert (len(train[0]), len(test[0])) == (1437, 360)
    assert train[0].max() > 0.99 and np.all(np.abs(test[1].sum(0) - 36) <= 2)  # stratified
    again = load_data("digits")[0]
    assert np.array_equal(train[0], again[0]) and np.array_equal(train[1], again[1])
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 and "scikit-learn" in lines[0] and "1437" in lines[0] and "360" in lines[0]


def test_digits_are_upright_images():
    """The enlarged image, averaged back to 8 x 8, is the original."""
    from sklearn.datasets import load_digits

    arrays = cvae.read_digits()
    small = arrays["x_train"][:, 2:26, 2:26].reshape(-1, 8, 3, 8, 3).mean((2, 4)).reshape(-1, 64)
    nearest = [np.abs(load_digits().data * 255 / 16 - image).mean(1).argmin() for image in small[:50]]
    assert np.array_equal(load_digits().target[nearest], arrays["y_train"][:50])


def test_local_file(intact, capsys):
    train, test = load_data()
    check_arrays((train, test))
    assert len(train[0]) == 30 and len(test[0]) == 20
    assert np.allclose(train[0][0].reshape(28, 28) * 255, fake_mnist()["x_train"][0], atol=1e-4)
    assert "local file mnist.npz" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["auto", "mnist"])
@pytest.mark.parametrize("size", [0, 10, 2000, -30])
def test_truncated_file_is_refused_with_hashes(intact, monkeypatch, name, size):
    offline(monkeypatch)
    intact.write_bytes(intact.read_bytes()[:size])
    found = cvae.hashlib.sha256(intact.read_bytes()).hexdigest()
    with pytest.raises(ValueError) as error:
        load_data(name)
    assert found in str(error.value) and cvae.MNIST_SHA256["x_train"] in str(error.value)


@pytest.mark.parametrize("name", ["auto", "mnist"])
def test_altered_file_is_refused_with_hashes(intact, monkeypatch, name):
    offline(monkeypatch)
    arrays = fake_mnist()
    arrays["y_train"][3] += 1
    np.savez_compressed(intact, **arrays)
    with pytest.raises(ValueError) as error:
        load_data(name)
    found = cvae.hashlib.sha256(arrays["y_train"].tobytes()).hexdigest()
    assert found in str(error.value) and cvae.MNIST_SHA256["y_train"] in str(error.value) and "x_train" not in str(error.value)


def test_file_without_the_arrays_is_refused(folder, monkeypatch):
    offline(monkeypatch)
    np.savez(folder / "mnist.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match="x_train"):
        load_data()


def test_missing_file_offline_falls_back_and_says_so(folder, monkeypatch, capsys):
    offline(monkeypatch)
    (x_train, _), _ = load_data()
    assert len(x_train) == 1437
    out = capsys.readouterr().out
    assert len(out.strip().splitlines()) == 1 and "standing in for MNIST" in out


def test_forced_mnist_offline_is_an_error_that_says_what_to_do(folder, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"mnist\.npz"):
        load_data("mnist")
    monkeypatch.setenv("ICVAE_DATASET", "mnist")
    with pytest.raises(FileNotFoundError):
        load_data()


def test_environment_and_argument(intact, monkeypatch, capsys):
    monkeypatch.setenv("ICVAE_DATASET", "digits")
    assert len(load_data()[0][0]) == 1437
    assert len(load_data("mnist")[0][0]) == 30  # the argument wins


@pytest.mark.parametrize("name", ["MNIST", "cifar", 3])
def test_unknown_name(name):
    with pytest.raises(ValueError, match="digits"):
        load_data(name)


def test_unknown_name_in_the_environment(monkeypatch):
    monkeypatch.setenv("ICVAE_DATASET", "fashion")
    with pytest.raises(ValueError, match="fashion"):
        load_data()


def test_data_dir_that_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ICVAE_DATA_DIR", str(tmp_path / "typo"))
    with pytest.raises(ValueError, match="typo"):
        load_data("auto")


# ---------------------------------------------------------------- the download


@pytest.fixture
def silent_server():
    """A server on this machine that accepts connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    held, stop = [], threading.Event()

    def accept():
        server.settimeout(0.1)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                held.append(server.accept()[0])

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/mnist.npz"
    stop.set()
    thread.join()
    for connection in (*held, server):
        connection.close()


def test_a_server_that_hangs_is_noticed_within_seconds(folder, monkeypatch, silent_server, capsys):
    monkeypatch.setattr(cvae, "MNIST_URL", silent_server)
    reachable = cvae.reachable
    monkeypatch.setattr(cvae, "reachable", lambda url, timeout=5.0: reachable(url, 0.5))
    start = time.monotonic()
    load_data()
    assert time.monotonic() - start < 60 and "standing in" in capsys.readouterr().out  # generous for a slow machine


def test_a_download_that_hangs_in_the_middle_is_given_up(folder, monkeypatch, silent_server):
    """The time limit of the sockets holds inside Keras too, and is taken back afterwards."""
    import urllib.request

    monkeypatch.setattr(cvae, "reachable", lambda url, timeout=5.0: True)
    monkeypatch.setattr(cvae.keras.datasets.mnist, "load_data", lambda: urllib.request.urlopen(silent_server).read())
    with pytest.raises(OSError, match="download failed"):
        cvae.fetch_mnist(timeout=0.5)
    assert socket.getdefaulttimeout() is None


def test_a_refused_connection_is_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not cvae.reachable(f"http://127.0.0.1:{port}/", timeout=2)


def test_a_name_look_up_that_hangs_is_given_up(monkeypatch):
    released = threading.Event()

    def hang(*args, **kwargs):
        released.wait(30)
        raise OSError("unknown host")

    monkeypatch.setattr(cvae.urllib.request, "urlopen", hang)
    start = time.monotonic()
    assert not cvae.reachable("http://example.invalid", timeout=0.2)
    assert time.monotonic() - start < 20
    released.set()


def test_a_damaged_file_in_the_cache_of_keras_is_refused_and_kept(folder, monkeypatch):
    offline(monkeypatch)
    cached = folder / "keras" / "datasets" / "mnist.npz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a file")
    with pytest.raises(ValueError, match="can't be read"):
        load_data()
    assert cached.read_bytes() == b"half a file"


def test_what_keras_brings_is_checked_too(folder, monkeypatch):
    arrays = fake_mnist()
    monkeypatch.setattr(cvae, "reachable", lambda url, timeout=5.0: True)
    brought = (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])
    monkeypatch.setattr(cvae.keras.datasets.mnist, "load_data", lambda: brought)
    with pytest.raises(ValueError, match="SHA-256"):
        load_data()
