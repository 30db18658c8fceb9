"""Bad input of `use_*` and the expected errors, in the form of `bad_input.py`.

In flags {name} is replaced by the path of a file in `FILES` of either module.
"""

from collections.abc import Callable, Sequence
import pathlib
import shutil
import subprocess
import sys

Table = Sequence[tuple[str, dict[str, str]]]
# A function that returns the path of another file in `FILES`.
_Path = Callable[[str], str]

_GRAPH = """
import sys
import tensorflow as tf
v1, (_, directory) = tf.compat.v1, sys.argv
with tf.Graph().as_default(), v1.Session() as session:
  x = v1.placeholder(tf.float32, [None])
  y = x * v1.get_variable("v", [])
  session.run(v1.global_variables_initializer())
  v1.saved_model.simple_save(session, directory, {"x": x}, {"y": y})
"""


def _tensorflow_1(path: pathlib.Path, _: _Path) -> None:
  subprocess.run(
    [sys.executable, "-c", _GRAPH, path], check=True, capture_output=True
  )


def _without(
  source: str, name: str, share: float = 0.0
) -> Callable[[pathlib.Path, _Path], None]:
  """Makes a function that copies an export and truncates or removes a file."""

  def make(path: pathlib.Path, find: _Path) -> None:
    shutil.copytree(find(source), path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: int(share * len(content))])
    if not share:
      (path / name).unlink()

  return make


_VARIABLES = "variables/variables.data-00000-of-00001"

FILES: dict[str, bytes | str | Callable[[pathlib.Path, _Path], None]] = {
  "images": "exporters/mnist_cnn --train_on=digits_0_4 --epochs=0"
  " --verification=off --export_dir={out}",
  "keras_model": "exporters/mnist_cnn --train_on=digits_0_4 --epochs=0"
  " --verification=off --saved_model_format=keras --export_dir={out}",
  "language_model": "exporters/text_rnn --train_on={corpus.txt} --epochs=0"
  " --units=4 --embedding_size=4 --export_type=language_model"
  " --verification=off --export_dir={out}",
  "embedding": "exporters/text_embedding --word_vectors_file={words.vec}"
  " --verification=off --export_dir={out}",
  "words.vec": b"2 2\ngood 1 2\nbad 2 1\n",
  "tensorflow_1": _tensorflow_1,
  "half_pb": _without("images", "saved_model.pb", 0.5),
  "half_variables": _without("images", _VARIABLES, 0.5),
  "no_variables": _without("images", _VARIABLES),
  "export_without_index": _without("images", "variables/variables.index"),
  "no_words": _without("embedding", "assets/vocab.txt"),
  "half_keras": _without("keras_model", "keras_metadata.pb", 0.5),
  "model.keras": b"PK\x03\x04" + bytes(60),
  "rows.tsv": b"text\tlabel\n" + b"good day\ta\nbad day\tb\n" * 9,
  "latin1.txt": b"caf\xe9\n" * 99,
  "short.txt": b"x",
  "names.txt": b"cat\n",
}

_IMAGES = "integration_tests/use_mnist_cnn --epochs=1"
_TEXTS = "integration_tests/use_text_embedding --epochs=1"

AT_ONCE: Table = [
  (
    _IMAGES,
    {
      "": "--saved_model_dir must have a value",
      "--saved_model_dir=": "--saved_model_dir is empty",
      "--saved_model_dir={text}": "DIR/text is a file. Pass the directory",
      "--saved_model_dir={directory}": "directory has no saved_model.pb",
      "--saved_model_dir=/nowhere": "/nowhere does not exist",
      "--saved_model_dir={export.tar.gz}": "is an archive, .* Unpack it",
      "--saved_model_dir={model.keras}": "is a model in Keras' own format",
      "--saved_model_dir={weights.h5}": "is weights of Keras in HDF5",
      "--saved_model_dir={images}/saved_model.pb": "is a file of a SavedModel",
      "--saved_model_dir={images}/variables": "saved_model.pb|of a checkpoint",
    },
  ),
  (
    "integration_tests/versions --saved_model_dir={linked} --uv=/bin/true",
    {
      "": "DIR/linked: assets/x is a symbolic link; --follow_links",
      "--uv=/nowhere": "--uv=/nowhere is no program",
    },
  ),
  (
    f"{_IMAGES} --saved_model_dir={{saved_model}}",
    {
      "--saved_model_dir={linked} --output_piece_dir={out}": "assets/x is a sy",
      "--batch_size=0": "--batch_size=0: 0 is not",
      "--epochs=0": "--epochs=0: 0 is not",
      "--epochs=1.5": "--epochs=1.5: It must be a whole",
      "--learning_rate=nan": "--learning_rate=nan: Say a finite number",
      "--learning_rate=inf": "--learning_rate=inf: Say a finite number",
      "--learning_rate=0": "--learning_rate=0.0: It must be more than 0",
      "--learning_rate=-1": "--learning_rate=-1.0: It must be more than 0",
      "--strategy=parameter_server": "--strategy=parameter_server needs TF_CO",
      "--image_size=0": r"--image_size=0: 0 is not .* \[32, 4096\]",
      "--image_size=100000": r"--image_size=100000: .* \[32, 4096\]",
      "--retrain --dropout_rate=1": "--dropout_rate=1: 1.0 is not",
      "--retrain --regularization_loss_multiplier=nan": "Say a finite number",
      "--noretrain --dropout_rate=0.5": "--dropout_rate applies only with --r",
      "--noretrain --output_piece_dir={out}": "applies only with --retrain",
      "--augmentation --task=segmentation": "--augmentation applies only with",
      "--strategy=tpu": "--strategy=tpu needs --tpu",
      "--mixed_precision=float16": "--mixed_precision=float16: .* <float32",
      "--nonsense": "ERROR: --nonsense is not a flag",
      "--check_first=": "--check_first is empty",
      "--check_first=/nowhere": "--check_first=/nowhere: No such file",
      "--check_first=false": "saved_model is not loaded, .* exit status 1",
      "--check_first='sh -c \"exit 2\"'": "is not loaded, .* exit status 2",
      "digits": "ERROR: digits is not a flag",
      "--dataset=": "--dataset=: It must be one of digits",
      "--dataset=cifar": "--dataset=cifar: It must be one of digits",
      "--dataset=tfds:": "--dataset=tfds:: It must be one of digits",
      "--held_out=2": "--held_out=2: 2.0 is not",
      "--checkpoint_dir={saved_model}": "is, or is inside, --saved_model_dir",
      "--checkpoint_dir={out} --backup_dir={out}": "is, or is inside, --che",
      "--output_saved_model_dir={out} --checkpoint_dir={out}/x": "is inside",
      "--backup_dir=": "--backup_dir is empty",
    },
  ),
  (
    f"{_TEXTS} --saved_model_dir={{saved_model}}",
    {
      "--train_file=": "--train_file is empty",
      "--text_column=a": "--text_column applies only with --train_file",
      "--task=search --train_file={rows.tsv}": "--train_file applies only with",
      "--combiner=max": "--combiner=max: .* <mean|sum|sqrtn>",
    },
  ),
  (
    "integration_tests/use_text_rnn --saved_model_dir={saved_model}",
    {
      "--seq_length=0": "--seq_length=0: 0 is not",
      "--temperature=nan": "--temperature=nan: Say a finite number",
      "--length=-1": "--length=-1: -1 is not",
      "--cell_dir={text}": "DIR/text is a file. Pass the directory",
    },
  ),
]

LATER: Table = [
  (
    f"{_IMAGES} --saved_model_dir=",
    {
      f"--saved_model_dir={{{name}}}": expected
      for name, expected in {
        "saved_model": "Cannot load DIR/saved_model: ",
        "half_pb": "Cannot parse file b'DIR/half_pb/saved_model.pb'",
        "half_variables": "Cannot load DIR/half_variables: .*less bytes",
        "no_variables": "Cannot load DIR/no_variables: ",
        "export_without_index": "Cannot load DIR/exp.*t_without_index: ",
        "tensorflow_1": "tensorflow_1 is no reusable SavedModel: it cannot be",
        "embedding": "The export does not take images, but",
        "product": "The export does not take images, but",
      }.items()
    },
  ),
  (
    f"{_IMAGES} --saved_model_dir={{images}}",
    {
      "--retrain --attention_dropout_rate=0.1": "has no hyperparameter att",
      "--image_size=64": "--image_size=64: the export takes only images of 28",
      "--task=segmentation": "--task=segmentation needs an export with endpo",
      "--dataset={directory}": "pictures in directory has 0 classes",
      "--dataset={empty}": "DIR/empty: there is no TFRecord",
      "--dataset={corpus.txt}": "corpus.txt: these are no TFRecords with",
      "--dataset=foo://x": "File system scheme 'foo' not implemented",
      "--dataset=tfds:nope": "tensorflow-datasets has no nope: Dataset nope",
      "--dataset=tfds:mnist:9.9.9": "has no mnist:9.9.9: .*only: 3.0.1",
      "--dataset=moving_digits": "these are videos; the model takes images",
      "--held_out=0.3": "has .*, to be held out. Omit --held_out",
      "--class_names_file={names.txt}": "file of class names has 1 of them",
      "--class_names_file={empty}": "DIR/empty, line 1: .* is missing",
      "--class_names_file={export.tar.gz}": "line 1: .*compressed by gzip",
      "--class_names_file=/nowhere": "Cannot read .* in /nowhere",
      "--num_gpus=9 --strategy=mirrored": "--num_gpus=9: TensorFlow finds",
      "--strategy=multi_worker_mirrored": "needs TF_CONFIG",
      "--output_saved_model_dir={text}": "Cannot write --output_saved_mo",
      "--output_saved_model_dir={images}": "is, or is inside|is not empty",
      "--checkpoint_dir={text}/x": "Cannot write --checkpoint_dir=DIR/text/x",
      "--backup_dir=/proc/x": "Cannot write --backup_dir=/proc/x",
      "--backup_dir={out}[1]": r"--backup_dir=\S*\[1\]: .* with \[ in it",
      "--output_saved_model_dir={read_only}/x": "Cannot write .*Read-only fil",
      "--saved_model_dir={half_variables} --checkpoint_dir={out}/x"
      " --output_saved_model_dir={out}/y": "Cannot load DIR/half_variables",
    },
  ),
  (
    f"{_TEXTS} --saved_model_dir={{embedding}} --train_file={{rows.tsv}}",
    {
      "--train_file=/nowhere.tsv": "/nowhere.tsv does not exist",
      "--train_file={text}": "DIR/text: the file must end in .csv",
      "--text_column=x": "rows.tsv has no column x, but text, label",
      "--class_names_file={names.txt}": "line 2: the class a is not in DIR/na",
      "--dropout_rate=0.1": "has no hyperparameter dropout_rate, but combiner",
      "--saved_model_dir={no_words}": "Cannot load DIR/no_words: .*vocab.txt",
      "--saved_model_dir={images}": "The SavedModel takes TensorSpec.*images",
    },
  ),
  (
    "integration_tests/use_text_rnn --saved_model_dir={language_model}"
    " --text_file={corpus.txt} --epochs=1",
    {
      "--text_file=/nowhere": "No such file or directory: /nowhere",
      "--text_file={directory}": "Is a directory: DIR/directory",
      "--text_file={latin1.txt}": "latin1.txt, line 1: this is not UTF-8",
      "--text_file={short.txt}": "fewer than the 64 bytes of one sequence",
      "--noretrain": "--noretrain leaves nothing to train",
      "--cell_dir={language_model}": "language_model is no exported cell: ",
      "--cell_dir={images}": "DIR/images is no exported cell: ",
      "--saved_model_dir={images}": "The SavedModel takes TensorSpec.*images",
    },
  ),
  (
    "integration_tests/use_tf_module --epochs=1 --saved_model_dir={product}",
    {
      "--dataset=turned_moons": "Choose the other data set",
      "--dataset=line --dropout_rate=0.1": "has no hyperparameter dropout_rat",
      "--dataset=line --saved_model_dir={tensorflow_1}": "no reusable SavedMo",
    },
  ),
  (
    "integration_tests/use_keras_model --epochs=1",
    {
      "--saved_model_dir={images}": "is not a complete Keras model of images",
      "--saved_model_dir={tensorflow_1}": "Cannot load DIR/tensorflow_1: ",
      "--saved_model_dir={half_keras}": "Cannot load DIR/half_keras: .*metada",
    },
  ),
]
