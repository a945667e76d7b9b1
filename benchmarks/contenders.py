"""The contenders of one epoch: `python -m benchmarks.contenders NAME DATA BATCH_SIZE` trains the ICVAE of chapter 3 epoch by epoch.

The process prints "ready DEVICE" after a warm-up epoch; then, for each line on its standard input, it trains an epoch and prints
its seconds and mean loss. So the caller can take turns between several such processes.
"""

import sys
import time

import numpy as np

BETA, LAM, LEARNING_RATE, HIDDEN, Z_DIM = 1.0, 0.1, 2e-3, 512, 16


def take_turns(epoch, device):
    """The protocol above for a function that trains one epoch and returns its mean loss, or its seconds and the loss."""
    epoch()
    print("ready", device, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = epoch()
        print(*(found if isinstance(found, tuple) else (time.perf_counter() - start, found)), flush=True)


def device_of_keras():
    from keras import ops

    return str(ops.zeros(1).device).rpartition("/")[2]


def project(x, c, batch_size, change=None, jit_compile=None, steps_per_execution=1):
    """`fit` of this project's ICVAE, on the backend that KERAS_BACKEND names. change: a function model -> model."""
    import keras

    from icvae.cvae import jit
    from icvae.training import FAST, build_model

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            loss = float(logs["loss"])  # waits for the device
            self.found = time.perf_counter() - self.start, loss

    model = build_model({**FAST, "beta": BETA, "lam": LAM}, x.shape[1], c.shape[1])
    model = change(model) if change else model
    jit_compile = jit() if jit_compile is None else jit_compile
    model.compile(keras.optimizers.Adam(LEARNING_RATE), jit_compile=jit_compile, steps_per_execution=steps_per_execution)

    def epoch():  # a `fit` for each turn: TensorFlow's input pipeline, kept waiting inside one, can sleep for up to a minute
        clock = Clock()
        model.fit({"x": x, "c": c}, batch_size=batch_size, verbose=0, callbacks=[clock])
        return clock.found

    take_turns(epoch, device_of_keras())


def pairs(z_mean, z_log_var):
    """The mean pairwise KL in nats by B x B matrices from matrix products, as it is often written: (B, d), (B, d) -> scalar."""
    from keras import ops

    variance, p = ops.exp(z_log_var), ops.exp(-z_log_var)
    trace = ops.matmul(variance, ops.transpose(p))
    square = ops.matmul(ops.square(z_mean), ops.transpose(p)) - 2 * ops.matmul(z_mean, ops.transpose(z_mean * p))
    square = square + ops.sum(ops.square(z_mean) * p, axis=1)[None]
    log_det = ops.sum(z_log_var, axis=1)
    return 0.5 * ops.mean(trace + square - z_mean.shape[1] + log_det[None] - log_det[:, None])


def with_pairs(model):
    """An ICVAE with the encoder and decoder of `model` whose kl_marginal is computed from all pairs."""
    from icvae import CVAE, ICVAE

    class PairsICVAE(ICVAE):
        def terms(self, x, c, z_mean, z_log_var, training=False):
            return {**CVAE.terms(self, x, c, z_mean, z_log_var, training), "kl_marginal": pairs(z_mean, z_log_var)}

    return PairsICVAE(model.encoder, model.decoder, beta=BETA, lam=LAM, seed=0)


def original(x, c, batch_size):
    """The original way: the same model and `fit`, without XLA, and with the loss of all pairs."""
    project(x, c, batch_size, with_pairs, jit_compile=False)


def sixteen_bits(x, c, batch_size):
    """This project under Keras's policy mixed_bfloat16."""
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    project(x, c, batch_size)


def many_steps(x, c, batch_size):
    """This project with 16 steps per execution."""
    project(x, c, batch_size, steps_per_execution=16)


def without_xla(x, c, batch_size):
    """This project without XLA."""
    project(x, c, batch_size, jit_compile=False)


def torch_loop(x, c, batch_size):
    """A plain PyTorch loop with torch.optim.Adam; no Keras."""
    import torch
    from torch import nn

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, c = torch.from_numpy(x).to(device), torch.from_numpy(c).to(device)
    hidden = [nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
    encoder = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), *hidden, nn.Linear(HIDDEN, 2 * Z_DIM)).to(device)
    hidden = [nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
    decoder = [nn.Linear(Z_DIM + c.shape[1], HIDDEN), nn.ReLU(), *hidden, nn.Linear(HIDDEN, x.shape[1]), nn.Sigmoid()]
    decoder = nn.Sequential(*decoder).to(device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], LEARNING_RATE)

    def loss_of(x, c):
        mean, log_var = encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        recon = (x - decoder(torch.cat([z, c], dim=1))).square().sum(1).mean()
        variance, p = log_var.exp(), (-log_var).exp()
        kl_prior = 0.5 * (mean.square() + variance - 1 - log_var).sum(1).mean()
        square = p.mean(0) * mean.square().mean(0) + (p * mean.square()).mean(0) - 2 * mean.mean(0) * (p * mean).mean(0)
        kl_marginal = 0.5 * (variance.mean(0) * p.mean(0) - 1 + square).sum()
        return (1 + LAM) * recon + BETA * kl_prior + LAM * kl_marginal

    def epoch():
        total = 0.0
        for rows in torch.randperm(len(x), device=device).split(batch_size):
            loss = loss_of(x[rows], c[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        return float(total) / len(x)

    take_turns(epoch, torch.cuda.get_device_name() if device.type == "cuda" else "cpu")


def layers(x_dim, c_dim):
    """(inputs, outputs) of the six dense layers, the encoder's last two taken as one."""
    encoder = [(x_dim, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * Z_DIM)]
    return [*encoder, (Z_DIM + c_dim, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, x_dim)]


def jax_scan(x, c, batch_size):
    """A plain JAX loop: shuffling, all steps and Adam in one compiled `scan` for each epoch; no Keras."""
    import jax
    import jax.numpy as jnp

    steps = len(x) // batch_size
    x, c = jnp.asarray(x), jnp.asarray(c)
    sizes, rng = layers(x.shape[1], c.shape[1]), np.random.default_rng(0)
    weights = [(rng.normal(size=s).astype("float32") * (2 / sum(s)) ** 0.5, np.zeros(s[1], "float32")) for s in sizes]
    zeros = jax.tree.map(jnp.zeros_like, weights)

    def loss_of(weights, x, c, key):
        (a, b, out, d, e, last) = weights
        layer = lambda h, w: h @ w[0] + w[1]  # noqa: E731
        mean, log_var = jnp.split(layer(jax.nn.relu(layer(jax.nn.relu(layer(x, a)), b)), out), 2, axis=1)
        z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
        h = jax.nn.relu(layer(jax.nn.relu(layer(jnp.concatenate([z, c], 1), d)), e))
        recon = jnp.square(x - jax.nn.sigmoid(layer(h, last))).sum(1).mean()
        variance, p = jnp.exp(log_var), jnp.exp(-log_var)
        kl_prior = 0.5 * (mean**2 + variance - 1 - log_var).sum(1).mean()
        square = p.mean(0) * (mean**2).mean(0) + (p * mean**2).mean(0) - 2 * mean.mean(0) * (p * mean).mean(0)
        return (1 + LAM) * recon + BETA * kl_prior + LAM * 0.5 * (variance.mean(0) * p.mean(0) - 1 + square).sum()

    def step(state, batch):
        weights, m, v, t = state
        rows, key = batch
        loss, grads = jax.value_and_grad(loss_of)(weights, x[rows], c[rows], key)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        rate = LEARNING_RATE * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, m, v)
        return (weights, m, v, t + 1), loss

    @jax.jit
    def train(state, key):
        rows = jax.random.permutation(key, len(x))[: steps * batch_size].reshape(steps, batch_size)
        return jax.lax.scan(step, state, (rows, jax.random.split(key, steps)))

    state, key = (weights, zeros, zeros, 1.0), jax.random.key(0)

    def epoch():
        nonlocal state, key
        key, now = jax.random.split(key)
        state, losses = train(state, now)
        return float(losses.mean())

    take_turns(epoch, jax.devices()[0].device_kind)


def products(x, c, batch_size):
    """Nothing but the matrix products of an epoch (forward, and both gradients of each layer), on the backend of Keras."""
    import keras
    from keras import ops

    rng, tensors = np.random.default_rng(0), []
    for i, o in layers(x.shape[1], c.shape[1]):
        h, w, g = (ops.convert_to_tensor(rng.normal(size=s).astype("float32")) for s in ((batch_size, i), (i, o), (batch_size, o)))
        tensors += [(h, w), (ops.transpose(h), g), (g, ops.transpose(w))]

    def multiply(tensors):
        return [ops.matmul(a, b) for a, b in tensors]

    if keras.backend.backend() == "jax":
        import jax

        multiply = jax.jit(multiply)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        multiply = tf.function(multiply)

    def epoch():
        for _ in range(len(x) // batch_size):
            last = multiply(tensors)
        ops.convert_to_numpy(last[-1])  # waits for the device
        return float("nan")  # there is no loss

    take_turns(epoch, device_of_keras())


CONTENDERS = {f.__name__: f for f in (project, without_xla, many_steps, sixteen_bits, original, torch_loop, jax_scan, products)}

if __name__ == "__main__":
    name, data, size = sys.argv[1:]
    arrays = np.load(data)
    CONTENDERS[name](arrays["x"], arrays["c"], int(size))
