"""Invariant conditional VAEs in Keras 3. The modules are exported from the notebooks; see notebooks/."""

from icvae.cvae import (
    CVAE,
    VAE,
    Sampling,
    build_decoder,
    build_encoder,
    kl_prior,
    load_data,
    reconstruction_error,
)
from icvae.evaluation import evaluate, probe_leakage, remap_accuracy
from icvae.invariance import kl_gaussian_marginal, kl_marginal, kl_pairwise, mutual_information
from icvae.training import ICVAE, active_units, load_or_train, load_pretrained, train

__version__ = "0.1.0"
__all__ = [
    "CVAE",
    "ICVAE",
    "VAE",
    "Sampling",
    "active_units",
    "build_decoder",
    "build_encoder",
    "evaluate",
    "kl_gaussian_marginal",
    "kl_marginal",
    "kl_pairwise",
    "kl_prior",
    "load_data",
    "load_or_train",
    "load_pretrained",
    "mutual_information",
    "probe_leakage",
    "reconstruction_error",
    "remap_accuracy",
    "train",
]
