"""Time to quality: `python -m benchmarks.quality WAY` trains until recon <= 20.0 and I(x;z) >= 3.5 nats on MNIST's test images.

WAY: "project" or "relu", chapter 3's `train` with the settings `FAST` and a plan below, or "original", the original way of contenders.py
with its constant rate of 5e-4. beta 1, lam 0.1. recon is taken from the mean code, as in chapter 4. Printed is "quality RECON I EPOCHS
SECONDS DEVICE", the seconds those of training alone, compilation included; the caller takes the time from the start of the process to
this line. Then follows "leak ACCURACY": how well the strongest of chapter 4's probes reads c from sampled codes of the test images,
which is no part of the goal.
"""

import sys
import time

import numpy as np

from .contenders import BETA, LAM, device_of_keras, with_pairs

RECON, INFORMATION = 20.0, 3.5
# what differs from FAST, planned ahead, as the schedule ends in decay
PLANS = {"project": {"epochs": 3, "batch_size": 128}, "relu": {"epochs": 2, "batch_size": 160, "initializer": "he_uniform"}}


def measure(model, x, c):
    """recon, and I(x;z) on 5,000 rows if recon is low enough for it to matter, else 0."""
    from icvae import mutual_information

    recon = float(np.square(x - model.predict({"x": x, "c": c}, batch_size=1000, verbose=0)).sum(1).mean())
    if recon > RECON:
        return recon, 0.0
    return recon, mutual_information(*model.encoder.predict(x[:5000], batch_size=1000, verbose=0))[0]


def leak(model, train_data, test_data):
    """Accuracy of the strongest probe on sampled codes."""
    from icvae import probe_leakage
    from icvae.evaluation import sample_codes

    parts = [
        (sample_codes(*model.encoder.predict(x, batch_size=1000, verbose=0), i), c) for i, (x, c) in enumerate((train_data, test_data))
    ]
    return probe_leakage(*parts[0], *parts[1])["strongest"]


def main(way, seed=0):
    import keras

    from icvae import load_data, train
    from icvae.training import FAST, SETTINGS, build_model, training_options

    (x, c), test_data = load_data("mnist")
    weights = {"beta": BETA, "lam": LAM, "seed": seed}
    if way in PLANS:
        settings = {**FAST, **weights, **PLANS[way]}
        model, epochs, start = build_model(settings, x.shape[1], c.shape[1]), settings["epochs"], time.perf_counter()
        train(model, x, c, **training_options(settings))
        seconds, figures = time.perf_counter() - start, measure(model, *test_data)
    else:  # a constant rate and batches of 32, judged after each epoch
        model, epochs, seconds, figures = with_pairs(build_model({**SETTINGS, **weights}, x.shape[1], c.shape[1])), 0, 0.0, (0.0, 0.0)
        model.compile(keras.optimizers.Adam(5e-4), jit_compile=False)
        while epochs < 40 and figures[1] < INFORMATION:
            start = time.perf_counter()
            model.fit({"x": x, "c": c}, batch_size=32, verbose=0)
            epochs, seconds, figures = epochs + 1, seconds + time.perf_counter() - start, measure(model, *test_data)
    print("quality", *figures, epochs, seconds, device_of_keras(), flush=True)
    print("leak", leak(model, (x[:20_000], c[:20_000]), test_data), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
