"""Settings of the test run, in one place. The kernels of the notebooks inherit the environment that is set here.

The backend is the one that Keras chooses (TensorFlow, unless KERAS_BACKEND or keras.json say otherwise).
"""

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("ICVAE_QUICK", "1")
os.environ.setdefault("ICVAE_DATASET", "digits")  # no download; set it to "mnist" to test on MNIST
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if os.environ["ICVAE_DATASET"] == "digits" and "PYTEST_XDIST_WORKER" not in os.environ:
    # trained models go to a folder of this run, which its workers share, so that training is really tested
    os.environ["ICVAE_DATA_DIR"] = tempfile.mkdtemp(prefix="icvae-")


def pytest_configure(config):
    """Test files and chapters run side by side, one on each core; the cells of a chapter share a kernel and stay together."""
    if config.option.dist in ("load", "worksteal"):
        config.option.dist = "loadscope"
    workers = len(config.option.tx)  # what pytest-xdist starts, at most --maxprocesses
    if workers > 1:  # workers and kernels inherit this; threads that wait for each other's cores cost several times as much
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC"):  # NPROC is read by JAX
            os.environ.setdefault(name, threads)


broken = {}  # notebook -> the cell that failed first


def pytest_collectstart(collector):
    """Pictures and warnings may differ between machines."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "image/svg+xml")


def pytest_runtest_setup(item):
    """After the first failure in a notebook, its other cells are skipped: one clear failure for each broken notebook."""
    if item.path.suffix == ".ipynb" and item.path in broken:
        pytest.skip(f"an earlier cell failed: {broken[item.path]}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if item.path.suffix == ".ipynb" and outcome.get_result().failed:
        broken.setdefault(item.path, item.name)


@pytest.fixture
def root():
    """The root of the repository."""
    return Path(__file__).parent
