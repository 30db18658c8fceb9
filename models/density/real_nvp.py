"""RealNVP: a normalizing flow for vectors (Dinh et al., arXiv:1605.08803).

A flow is an invertible map from vectors of the data to latent vectors that are
standard normal. Both directions use the same variables: the forward map gives
the likelihood of a vector, and its inverse draws new vectors. A Keras model has
one direction only, so the flow is a `tf.Module`.
"""

import math

import tensorflow as tf


class Dense(tf.Module):
  """A dense layer."""

  def __init__(self, kernel: tf.Tensor, name: str):
    """Creates the variables, with the values `kernel` and a bias of 0."""
    super().__init__(name)
    with self.name_scope:
      self.kernel = tf.Variable(kernel, name="kernel")
      self.bias = tf.Variable(tf.zeros(kernel.shape[1:]), name="bias")

  def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
    """Returns `[batch, units]` for `[batch, features]`."""
    return tf.nn.bias_add(inputs @ self.kernel, self.bias)


class Coupling(tf.Module):
  """Scales and shifts some features by functions of the others."""

  def __init__(self, kept: list[float], units: int, seed: int, name: str):
    """Creates a coupling that is the identity until it is trained.

    Args:
      kept: 1 for each feature that the coupling keeps, 0 for each that it
        changes.
      units: Units of each of the two hidden layers.
      seed: Seed of the initial kernels.
      name: Name of the module.
    """
    super().__init__(name)
    self._kept = tf.constant(kept)
    size = len(kept)

    def initial(rows: int, layer: int) -> tf.Tensor:
      kernel = tf.random.stateless_normal([rows, units], [seed, layer])
      return kernel * math.sqrt(2 / rows)

    with self.name_scope:
      self.hidden = [
        Dense(initial(size, 0), name="hidden_0"),
        Dense(initial(units, 1), name="hidden_1"),
      ]
      self.log_scale = Dense(tf.zeros([units, size]), name="log_scale")
      self.largest_log_scale = tf.Variable(
        tf.ones([size]), name="largest_log_scale"
      )
      self.shift = Dense(tf.zeros([units, size]), name="shift")

  def _log_scale_and_shift(
    self, inputs: tf.Tensor, dropout_rate: tf.Tensor | None
  ) -> tuple[tf.Tensor, tf.Tensor]:
    hidden = self._kept * inputs
    for layer in self.hidden:
      hidden = tf.nn.relu(layer(hidden))
      if dropout_rate is not None:
        hidden = tf.nn.dropout(hidden, dropout_rate)
    changed = 1.0 - self._kept
    log_scale = self.largest_log_scale * tf.tanh(self.log_scale(hidden))
    return changed * log_scale, changed * self.shift(hidden)

  def __call__(
    self, inputs: tf.Tensor, dropout_rate: tf.Tensor | None
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the outputs, and the logarithm of each feature's scale."""
    log_scale, shift = self._log_scale_and_shift(inputs, dropout_rate)
    return inputs * tf.exp(log_scale) + shift, log_scale

  def inverse(self, outputs: tf.Tensor) -> tf.Tensor:
    """Returns the inputs that give these outputs."""
    # Scale and shift depend only on the kept features, which inputs and outputs
    # share.
    log_scale, shift = self._log_scale_and_shift(outputs, None)
    return (outputs - shift) * tf.exp(-log_scale)


class RealNVP(tf.Module):
  """A flow between vectors and standard normal latent vectors.

  Attributes:
    mean: Mean of each feature of the data, not trainable; 0 at first.
    stddev: Standard deviation of each feature of the data; 1 at first.
  """

  def __init__(
    self,
    num_features: int,
    *,
    num_couplings: int = 8,
    units: int = 32,
    l2_strength: float = 1e-5,
    seed: int = 0,
  ):
    """Creates a flow that only standardizes vectors until it is trained.

    Args:
      num_features: Length of the vectors, 2 or more.
      num_couplings: Number of couplings. They alternate between changing the
        even and the odd features.
      units: Units of each hidden layer in the couplings.
      l2_strength: Factor of the L2 regularization of the kernels.
      seed: Seed of the initial kernels.
    """
    super().__init__("real_nvp")
    self.l2_strength = l2_strength
    with self.name_scope:
      self.mean = tf.Variable(
        tf.zeros([num_features]), trainable=False, name="mean"
      )
      self.stddev = tf.Variable(
        tf.ones([num_features]), trainable=False, name="stddev"
      )
      self.couplings = [
        Coupling(
          [float((feature + i) % 2) for feature in range(num_features)],
          units,
          seed=seed * num_couplings + i,
          name=f"coupling_{i}",
        )
        for i in range(num_couplings)
      ]

  def __call__(
    self,
    vectors: tf.Tensor,
    training: bool = False,
    dropout_rate: float | tf.Tensor = 0.0,
  ) -> dict[str, tf.Tensor]:
    """Computes latent vectors and likelihoods.

    Args:
      vectors: float32 `[batch, num_features]`.
      training: Whether to apply dropout.
      dropout_rate: Share of the hidden units of the couplings that training
        drops, in [0, 1). The map is invertible whichever units are dropped.

    Returns:
      `latents`, float32 `[batch, num_features]`, and `log_likelihood`, the
      natural logarithm of the density of each vector, float32 `[batch]`.
    """
    latents = (vectors - self.mean) / self.stddev
    log_scales = -tf.math.log(self.stddev)
    for coupling in self.couplings:
      latents, log_scale = coupling(latents, dropout_rate if training else None)
      log_scales += log_scale
    log_normal = -0.5 * (latents**2 + math.log(2 * math.pi))
    # XLA compiles the gradient of a sum once if the sum keeps its dimensions.
    total = tf.reduce_sum(log_scales + log_normal, -1, keepdims=True)
    return {"latents": latents, "log_likelihood": tf.squeeze(total, -1)}

  def inverse(self, latents: tf.Tensor) -> tf.Tensor:
    """Computes vectors from latent vectors, both `[batch, num_features]`."""
    for coupling in reversed(self.couplings):
      latents = coupling.inverse(latents)
    return latents * self.stddev + self.mean

  def sample(
    self, temperatures: tf.Tensor, seed: int | tf.Tensor = 0
  ) -> tf.Tensor:
    """Draws vectors.

    Args:
      temperatures: float32 `[batch]`. Each vector is the inverse of a latent
        vector with this standard deviation. 1 gives the learned density; lower
        values give more typical vectors.
      seed: The same seed draws the same vectors.

    Returns:
      float32 `[batch, num_features]`.
    """
    shape = [tf.shape(temperatures)[0], self.mean.shape[0]]
    noise = tf.random.stateless_normal(shape, [seed, 0])
    return self.inverse(temperatures[:, tf.newaxis] * noise)

  @property
  def regularization_losses(self) -> list:
    """One function, which returns the L2 loss of all kernels."""
    return [self._l2_loss]

  def _l2_loss(self) -> tf.Tensor:
    kernels = [v for v in self.trainable_variables if v.shape.rank == 2]
    return self.l2_strength * tf.add_n([tf.reduce_sum(k**2) for k in kernels])
