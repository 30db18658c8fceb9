from official.vision.modeling.layers import nn_layers
import tensorflow as tf

from models.vision import stochastic_depth


class StochasticDepthTest(tf.test.TestCase):
  def test_compiles_once_for_all_rates(self):
    layer = nn_layers.StochasticDepth(0.5)
    call = stochastic_depth.without_branch(layer)
    traces = []

    @tf.function(jit_compile=True)
    def step(inputs, rate):
      traces.append(rate)
      layer._drop_rate = rate
      with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = call(inputs, training=True)
        loss = tf.reduce_sum(outputs * inputs)
      return outputs, tape.gradient(loss, inputs)

    inputs = 1.0 + tf.random.stateless_uniform([1000, 2, 3], [1, 2])
    for rate in (0.0, 0.2, 0.75):
      outputs, gradient = step(inputs, tf.constant(rate))
      kept = outputs[:, 0, 0] > 0
      # For 1,000 examples, 0.08 is at least 5 standard deviations.
      self.assertAllClose(
        tf.reduce_mean(tf.cast(kept, tf.float32)), 1 - rate, atol=0.08
      )
      scale = tf.cast(kept, tf.float32)[:, None, None] / (1 - rate)
      self.assertAllClose(outputs, inputs * scale, rtol=1e-6)
      self.assertAllClose(gradient, 2 * inputs * scale, rtol=1e-6)
      if not rate:
        self.assertAllEqual(outputs, inputs)
    self.assertLen(traces, 1)

  def test_same_as_model_garden(self):
    inputs = tf.random.stateless_normal([64, 2, 3, 4], [3, 4])
    for rate, training in (
      (0.3, True),
      (0.3, False),
      (0.0, True),
      (None, True),
    ):
      layer = nn_layers.StochasticDepth(rate)
      results = []
      for call in (layer.call, stochastic_depth.without_branch(layer)):
        tf.random.set_seed(5)
        results.append(call(inputs, training=training))
      self.assertAllClose(results[1], results[0], rtol=1e-6)


if __name__ == "__main__":
  tf.test.main()
