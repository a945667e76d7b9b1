"""Settings of the test run, in one place. The kernels of the notebooks inherit the environment that is set here."""

import os
import tempfile

import pytest

os.environ.setdefault("ICVAE_QUICK", "1")
os.environ.setdefault("ICVAE_DATASET", "digits")  # no download; set it to "mnist" to test on MNIST
