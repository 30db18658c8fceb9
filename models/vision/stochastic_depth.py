"""stub until C1"""

LAYER = "official.vision.modeling.layers.nn_layers.StochasticDepth"


def without_branch(layer):
  return layer.call
