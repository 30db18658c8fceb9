"""Why each rule matters and to whom, what breaks it, and how to repair it.

This module does not import TensorFlow, so that findings print without it.
"""

from typing import NamedTuple


class Reason(NamedTuple):
  """Why a rule matters.

  Attributes:
    why: What goes wrong for a consumer if the rule is broken, and when.
    broken_by: The usual cause.
    mended_by: The usual repair.
    trains: Whether the rule matters only to consumers who train the model.
  """

  why: str
  broken_by: str
  mended_by: str
  trains: bool = False


REASONS = {
  "S1": Reason(
    "An op for files, networks or Python runs with your rights when you load or"
    " call the model.",
    "`tf.io.write_file`, `tf.py_function`",
    "Trace the model without these ops.",
  ),
  "R1": Reason(
    "`hub.KerasLayer` refuses it. Only its signatures can be used, and they do"
    " not train.",
    "Keras 3's `Model.export`, TensorFlow 1",
    "Save an object whose `__call__` is a traced `tf.function`.",
  ),
  "R2": Reason(
    "`hub.KerasLayer` passes one input, so a call fails.",
    "a second argument without default",
    "Put all inputs into one list or dict.",
  ),
  "R3": Reason(
    "You fine-tune without dropout, or with moving averages that never move.",
    "a `__call__` that was traced in one mode",
    "Trace `__call__` with `training=False` and `training=True`.",
    trains=True,
  ),
  "R4": Reason(
    "Some calls fail, such as one with a hyperparameter in inference.",
    "a combination of arguments that was not traced",
    "Trace `__call__` for every combination.",
  ),
  "R5": Reason(
    "Weights that are not listed, or whose gradient is wrong, are not trained,"
    " and nothing says so.",
    "a `tf.Module`, whose lists are properties and are not saved",
    "Save `variables` and `trainable_variables` as attributes.",
    trains=True,
  ),
  "R6": Reason(
    "You fine-tune without the regularization that the model was trained with.",
    "losses that are Tensors instead of functions",
    "Save a list of `tf.function`s without arguments.",
    trains=True,
  ),
  "R7": Reason(
    "You cannot adapt dropout or batch normalization to a small data set.",
    "rates that are constants of the graph",
    "Make rates scalar Tensor arguments with Python defaults.",
    trains=True,
  ),
  "R8": Reason(
    "Batches of another size fail, such as the last one of an epoch.",
    "a trace with a fixed batch size",
    "Trace with `None` as the first dimension.",
  ),
  "R9": Reason(
    "A part of the model cannot be trained by itself.",
    "a bare function of variables that the model does not list",
    "Save it as an object with its variables and losses.",
    trains=True,
  ),
  "R10": Reason(
    "The download is larger than needed, does not load on other machines, or"
    " shows where it was made.",
    "`Model.save` of a compiled model; a vocabulary by its path",
    "Save with `include_optimizer=False`, and files as `tf.saved_model.Asset`.",
  ),
  "R11": Reason(
    "TensorFlow Serving, and programs in other languages, call this signature.",
    "saving without `signatures`",
    "Pass `signatures={'serving_default': …}` with named outputs.",
  ),
  "R12": Reason(
    "A loss with `from_logits=True` is wrong, and small probabilities lose"
    " their gradients.",
    "a softmax as the last layer",
    "Save the model without the softmax.",
    trains=True,
  ),
  "R13": Reason(
    "Nobody can tell how to use or fine-tune the model without its author.",
    "no `assets.extra/README.md`, or that of another model",
    "Write the card into `assets.extra/README.md`.",
  ),
  "R14": Reason(
    "It matters only if you train with `jit_compile=True` or on TPUs: every"
    " step recompiles, or XLA refuses it.",
    "a global mean without `keepdims`",
    "Give the op a gradient that takes no constant from the forward pass.",
    trains=True,
  ),
  "R15": Reason(
    "The answer for an example depends on chance, on other examples, or on"
    " earlier calls.",
    "dropout or moving averages that are active in inference",
    "Pass `training=False` to all layers when tracing inference.",
  ),
  "R16": Reason(
    "Dropout drops the same units in every step or after each load, which"
    " regularizes less.",
    "`tf.random.set_seed`, or random numbers of Python",
    "Draw with ops that have no seed.",
    trains=True,
  ),
  "R17": Reason(
    "The model ignores what consumers pass.",
    "an input that is read nowhere, or multiplied by 0",
    "Compute with all inputs.",
  ),
  "K1": Reason(
    "`keras.layers.TFSMLayer` calls this endpoint.",
    "an endpoint whose variables are not listed",
    "Export with `keras.Model.export`.",
  ),
  "I1": Reason(
    "Images that are prepared as TensorFlow Hub says get wrong features.",
    "an input of uint8",
    "Take float32 in [0, 1], and normalize inside the model.",
  ),
  "I2": Reason(
    "A new head needs vectors of a known size.",
    "feature maps, or dropout on the output",
    "Pool over height and width, and cut before the dropout.",
  ),
  "I3": Reason(
    "Losses and metrics expect one logit for each class.",
    "logits of another shape or dtype",
    "Return float32 `[batch, classes]`.",
  ),
  "I4": Reason(
    "You must resize your images to the one size of the model.",
    "a trace with fixed height and width",
    "Trace with `None` for all sizes.",
  ),
  "I5": Reason(
    "Small data sets need a smaller momentum than the model was trained with.",
    "a momentum that is a constant of the graph",
    "Make `batch_norm_momentum` an argument.",
    trains=True,
  ),
  "T1": Reason(
    "A text has another embedding in a batch, or none.",
    "a mean over no words",
    "Compute each vector from its own text alone.",
  ),
  "T2": Reason(
    "You cannot prepare texts for the encoder, or not in an input pipeline.",
    "no sub-object `tokenize` or `bert_pack_inputs`",
    "Save both as sub-objects.",
  ),
  "T3": Reason(
    "Programs for BERT do not run with it, or ignore a part of their input.",
    "a trace with a fixed length",
    "Trace with int32 and `[None, None]`.",
  ),
  "T4": Reason(
    "With the preprocessor of another vocabulary, all tokens are wrong, and"
    " nothing says so.",
    "a card that names no preprocessor",
    "Name it, and save `preprocessor_sha256` with both.",
  ),
  "T5": Reason(
    "You cannot continue masked language modeling.",
    "an `mlm` that returns hidden states",
    "Multiply the outputs with the table of word embeddings.",
    trains=True,
  ),
  "T6": Reason(
    "You cannot tell which tokens the ids stand for.",
    "no `vocab_file`",
    "Save `vocab_file` as an asset and `do_lower_case` as a variable.",
  ),
  "T7": Reason(
    "You cannot mask tokens, because the ids of special tokens are unknown.",
    "a `tokenize` without `get_special_tokens_dict`",
    "Save that function.",
    trains=True,
  ),
  "T8": Reason(
    "It matters only if you preprocess on the host of a TPU, which may not run"
    " Assert ops.",
    "checks of shapes in TensorFlow Text",
    "Remove the Assert ops.",
    trains=True,
  ),
  "W1": Reason(
    "Padding changes sums and means of word vectors.",
    'a vector for ""',
    'Multiply by 0 where the word is "".',
  ),
  "G1": Reason(
    "You cannot generate text, or not the same text twice.",
    "random numbers that ignore the seed",
    "Draw with `tf.random.stateless_*` and the seed.",
  ),
  "G2": Reason(
    "Text that is generated step by step differs from what the model learned.",
    "a `step` with other initial states",
    "Compute both with the same cell, from states of zeros.",
  ),
  "G3": Reason(
    "You cannot turn text into ids and back.",
    "ids of int64",
    "Return an int32 RaggedTensor, and undo it in `detokenize`.",
  ),
  "C1": Reason(
    "An RNN layer cannot run the cell.",
    "states in another order than `state_sizes`",
    "Return new states of the same shapes, in the same order.",
  ),
  "D1": Reason(
    "Users read a wrong class name or a wrong probability.",
    "class names in another order than the logits",
    "Order the logits as `class_names`.",
  ),
  "D2": Reason(
    "Some pictures fail or are classified wrongly, such as grey ones.",
    "decoding that expects three channels",
    "Decode with `tf.io.decode_image`, and scale to [0, 1].",
  ),
}
