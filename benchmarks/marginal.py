"""Cost of the marginal KL: `python -m benchmarks.marginal WAY LARGEST` prints "B SECONDS MEGABYTES VALUE" for B = 64, 256 ... LARGEST.

Value and gradient for B codes of 16 dimensions, on JAX. WAY: "broadcast" (`kl_pairwise` as it stands in chapter 2, a B x B x d array,
not compiled), "pairs" (B x B matrices from products, compiled) or "exact" (`kl_marginal`, compiled). MEGABYTES: growth of the peak
memory of the process, or of the GPU. It stops when memory ends (the process dies) or when one evaluation takes over PATIENCE seconds.
"""

import os
import re
import resource
import sys
import time
from pathlib import Path

import numpy as np

from .contenders import pairs

PATIENCE = 10.0
REPEATS = 3


def peak_megabytes():
    import jax

    statistics = jax.devices()[0].memory_stats()
    if statistics:  # a GPU
        return statistics["peak_bytes_in_use"] / 2**20
    if sys.platform == "linux":  # not ru_maxrss, which a process inherits from its parent
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(way, largest):
    import jax
    from keras import ops

    from icvae.invariance import kl_marginal, kl_pairwise

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sys.platform == "linux":  # so that memory ends here, and not in the middle of another program
        resource.setrlimit(resource.RLIMIT_DATA, (memory * 3 // 4, memory * 3 // 4))
    loss = {"broadcast": lambda m, v: ops.mean(kl_pairwise(m, v)), "pairs": pairs, "exact": kl_marginal}[way]
    evaluate = jax.value_and_grad(loss, argnums=(0, 1))
    evaluate = evaluate if way == "broadcast" else jax.jit(evaluate)
    jax.block_until_ready(jax.numpy.zeros(1))  # so that the start of the device does not count
    before, size, longest = peak_megabytes(), 64, 0.0
    while size <= largest and longest < PATIENCE:
        rng = np.random.default_rng(size)
        z_mean, z_log_var = rng.normal(size=(2, size, 16)).astype("float32")
        seconds = []
        for _ in range(REPEATS + 1):  # the first one compiles
            start = time.perf_counter()
            value = jax.block_until_ready(evaluate(z_mean, z_log_var - 2))[0]
            seconds.append(time.perf_counter() - start)
        longest = float(np.median(seconds[1:]))
        print(size, longest, peak_megabytes() - before, float(value), flush=True)
        size *= 4


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
