"""Bad input of all programs and the expected errors, for `bad_input_test.py`.

A table has pairs of a valid command line and a dict. A key of the dict has
flags that are added to the command line, and its value is a regular expression
of the error. In flags {name} is replaced by the path of a file in `FILES`, and
{out} by a path where nothing exists. The exit status is always 1.
"""

from collections.abc import Callable, Sequence
import gzip
import os
import pathlib
import shutil

Table = Sequence[tuple[str, dict[str, str]]]
# A function that returns the path of another file in `FILES`.
_Path = Callable[[str], str]


def _directory(path: pathlib.Path, _: _Path) -> None:
  path.mkdir()


def _earlier_export(path: pathlib.Path, _: _Path) -> None:
  (path / "assets.extra").mkdir(parents=True)
  (path / "assets.extra/README.md").touch()


def _saved_model(path: pathlib.Path, _: _Path) -> None:
  path.mkdir()
  (path / "saved_model.pb").touch()


def _linked(path: pathlib.Path, find: _Path) -> None:
  _saved_model(path, find)
  (path / "assets").mkdir()
  (path / "assets/x").symlink_to(find("text"))


def _without_card(path: pathlib.Path, find: _Path) -> None:
  shutil.copytree(find("product"), path)
  (path / "assets.extra/README.md").unlink()
  (path / "assets.extra/README.md").mkdir()


def _damaged(
  source: str, name: str, damage: Callable[[bytes], bytes | None]
) -> Callable[[pathlib.Path, _Path], None]:
  """Makes a function that copies a directory and damages files in it.

  Args:
    source: Name of the directory.
    name: A pattern of paths in it, or the path of a new file.
    damage: Returns the new content of a file; None removes the file.
  """

  def make(path: pathlib.Path, find: _Path) -> None:
    shutil.copytree(find(source), path)
    for file in [*path.glob(name)] or [path / name]:
      content = damage(file.read_bytes() if file.exists() else b"")
      if content is None:
        file.unlink()
      else:
        file.write_bytes(content)

  return make


def _half(content: bytes) -> bytes:
  return content[: len(content) // 2]


def _empty(_: bytes) -> bytes:
  return b""


def _flipped(content: bytes) -> bytes:
  middle = len(content) // 2
  return (
    content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]
  )


def _not_finite(path: pathlib.Path, find: _Path) -> None:
  """Writes the checkpoint of a language model, with NaN in its variables."""
  if pid := os.fork():  # TensorFlow does not survive a fork once it has run.
    assert os.waitpid(pid, 0)[1] == 0
    return
  status = 1
  try:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(find("text_rnn"))
    values = {
      k: reader.get_tensor(k) for k in reader.get_variable_to_shape_map()
    }
    path.mkdir()
    tf.raw_ops.SaveV2(
      prefix=str(path / "ckpt"),
      tensor_names=list(values),
      shape_and_slices=[""] * len(values),
      tensors=[
        v * float("nan") if "kernel" in k else v for k, v in values.items()
      ],
    )
    status = 0
  finally:
    os._exit(status)


_SPECIAL = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
_CORPUS = b"".join(
  b"The %d foxes jump over %d dogs.\n\n" % (i, i) for i in range(99)
)
_BERT = (
  b"type: bert\nbert: {vocab_size: 9, num_layers: 1, hidden_size: 8,"
  b" num_attention_heads: 2, intermediate_size: 8, max_position_embeddings: 16}"
)
_JSON = (
  b'{"vocab_size": 9, "num_hidden_layers": 1, "hidden_size": 8,'
  b' "num_attention_heads": 2, "intermediate_size": 8}'
)


def _with(config: bytes, old: bytes, new: bytes) -> bytes:
  assert old in config
  return config.replace(old, new)


# Files by name: the content, a function that makes the file, or the command
# line of a program that does.
FILES: dict[str, bytes | str | Callable[[pathlib.Path, _Path], None]] = {
  "directory": _directory,
  "full": _directory,
  "read_only": _directory,
  "earlier_export": _earlier_export,
  "pipe": lambda path, _: os.mkfifo(path),
  "link": lambda path, find: path.symlink_to(find("text")),
  "saved_model": _saved_model,
  "linked": _linked,
  "empty": b"",
  "text": b"just some text\n",
  "page": b"<!DOCTYPE html>",
  "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
  "weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(100),
  "export.tar.gz": b"\x1f\x8b" + bytes(100),
  "pytorch_model.bin": b"PK" + bytes(100),
  "an.index": b"",
  "corpus.txt": _CORPUS,
  "latin1": _SPECIAL + b"caf\xe9\n",
  # Checkpoints and exports.
  "mnist_cnn": "exporters/mnist_cnn --train_on=digits_0_4 --epochs=0"
  " --checkpoint_dir={out} --export_dir={out}_ --verification=off",
  "resnet": "exporters/resnet --train_on=digits_0_4 --epochs=0"
  " --checkpoint_dir={out} --export_dir={out}_ --verification=off",
  "text_rnn": "exporters/text_rnn --train_on={corpus.txt} --epochs=0 --units=4"
  " --embedding_size=4 --checkpoint_dir={out} --export_dir={out}_"
  " --verification=off",
  "bert": "exporters/bert_pretraining --train_on={corpus.txt} --epochs=0"
  " --seq_length=16 --batch_size=2 --do_lower_case"
  " --encoder_config_file={many_tokens.yaml} --checkpoint_dir={out}",
  "product": "exporters/tf_module --module=product --verification=off"
  " --export_dir={out}",
  "half_index": _damaged("mnist_cnn", "*.index", _half),
  "lost_index": _damaged("mnist_cnn", "*.index", lambda _: None),
  "flipped_index": _damaged("mnist_cnn", "*.index", _flipped),
  "half_data": _damaged("mnist_cnn", "*.data-*", _half),
  "empty_data": _damaged("mnist_cnn", "*.data-*", _empty),
  "no_data": _damaged("mnist_cnn", "*.data-*", lambda _: None),
  "flipped_data": _damaged("mnist_cnn", "*.data-*", _flipped),
  "not_finite": _not_finite,
  "half_run": _damaged("bert", "*.data-*", _half),
  "half_export": _damaged("product", "saved_model.pb", _half),
  "no_fingerprint": _damaged("product", "fingerprint.pb", lambda _: None),
  "bad_fingerprint": _damaged("product", "fingerprint.pb", lambda _: b"\xff"),
  "bad_model": _damaged(
    "product", "assets.extra/model.json", lambda _: b"\xff"
  ),
  "deep_model": _damaged(
    "product", "assets.extra/model.json", lambda _: b"[" * 200_000
  ),
  "nan_model": _damaged(
    "product",
    "assets.extra/model.json",
    lambda content: content.replace(b'"version": 1', b'"version": NaN'),
  ),
  "no_card": _without_card,
  "bad_report": _damaged(
    "product", "assets.extra/verification.json", lambda _: b"[1]"
  ),
  "lost_variables": _damaged("product", "variables/*", lambda _: None),
  # Configs of encoders.
  "encoder.yaml": _BERT,
  "many_tokens.yaml": _with(_BERT, b"vocab_size: 9", b"vocab_size: 400"),
  "unknown.yaml": _with(
    _BERT, b"num_layers: 1", b"num_layer: 1, hiden_size: 8"
  ),
  "word.yaml": _with(_BERT, b"num_layers: 1", b"num_layers: one"),
  "none.yaml": _with(_BERT, b"num_layers: 1", b"num_layers: 0"),
  "heads.yaml": _with(_BERT, b"heads: 2", b"heads: 3"),
  "rate.yaml": _with(_BERT, b"16}", b"16, dropout_rate: 1.5}"),
  "activation.yaml": _with(_BERT, b"16}", b"16, hidden_activation: geluu}"),
  "huge.yaml": _with(
    _BERT, b"hidden_size: 8", b"hidden_size: 99999999999999999999"
  ),
  "kind.yaml": _with(_BERT, b"type: bert", b"type: brt"),
  "list.yaml": b"- a\n- b\n",
  "deep.yaml": b"[" * 5000,
  "python.yaml": b"!!python/object/apply:os.system ['echo']",
  "bytes.yaml": bytes(9),
  "half.json": _half(_JSON),
  "list.json": b"[]",
  "text.json": _with(_JSON, b"9", b'"9"'),
  "gpt.json": _with(_JSON, b"{", b'{"model_type": "gpt2", '),
  "no_size.json": _with(_JSON, b'"vocab_size": 9, ', b""),
  # Vocabularies and vectors.
  "vocab": _SPECIAL + b"a\nb\nc\nd\n",
  "gap": _SPECIAL + b"a\n\nc\nd\n",
  "twice": _SPECIAL + b"a\nb\nb\nd\n",
  "no_mask": _with(_SPECIAL, b"[MASK]\n", b"") + b"a\nb\nc\nd\ne\n",
  "cased": _SPECIAL + b"The\nFox\nAnd\nDog\n",
  "short": _SPECIAL + b"a\nb\nc\n",
  "vectors": b"the 1 2\ncat 3 4\n",
  "ragged": b"the 1 2\ncat 3\n",
  "letters": b"the 1 x\n",
  "nan": b"the nan 2\n",
  "overflow": b"the 1e999 2\n",
  "too_many": b"3 2\nthe 1 2\n",
  "no_values": b"the\n",
  "half.gz": _half(gzip.compress(bytes(range(256)) * 9)),
  # Documents.
  "few.txt": b"one document\n",
  "latin1_corpus.txt": b"caf\xe9 " * 9,
  "no_text.csv": b"a,b\n1,2\n",
  "quote.csv": b'text\n"open\n',
  "broken.jsonl": b'{"text": "a"}\n{"text":\n',
  "broken.parquet": b"PAR1" + bytes(20),
  "broken.txt.gz": b"not compressed",
}

_TRAIN = (
  "--train_on=digits_0_4 --epochs=0 --export_dir={out} --verification=off"
)
_RESTORE = "--export_dir={out} --verification=off --checkpoint_path="

# The field of a config that names the variant of each architecture.
_ARCHITECTURES = {
  "deit": "vit.model_name",
  **{
    name: f"{name}.model_id"
    for name in ("efficientnet", "mobilenet", "resnet", "resnet_3d", "revnet")
  },
  "vit": "vit.model_name",
}

# Errors before TensorFlow is imported.
AT_ONCE: Table = [
  (
    f"exporters/mnist_cnn {_TRAIN}",
    {
      "--epochs=many": "--epochs=many: It must be a whole",
      "--epochs=-1": "--epochs=-1: -1 is not",
      "--batch_size=0": "--batch_size=0: 0 is not",
      "--batch_size=99999999999999999999": "--batch_size=9+: .*2147483647",
      "--seed=-1": "--seed=-1: -1 is not",
      "--learning_rate=nan": "--learning_rate=nan: Say a finite number",
      "--learning_rate=1e999": "--learning_rate=inf: Say a finite number",
      "--l2_strength=-1": "--l2_strength=-1: -1.0 is not",
      "--held_out=1": "--held_out=1: 1.0 is not a number in the range",
      "--train_on=": "--train_on=",
      "--train_on=cifar": "--train_on=cifar: It must be one of digits",
      "--train_on=/nowhere": "--train_on=/nowhere: .*an existing path",
      "--train_on": "--train_on=--train_on|Missing value for flag --train_on",
      "--checkpoint_path=x": "either --checkpoint_path=PATH or --train_on=NAME",
      "--weights=raw": "--weights applies only with --checkpoint_path",
      "--class_names_file=/nowhere": "--class_names_file=/nowhere: No such",
      "--class_names_file={directory}": "--class_names_file=DIR/directory is a",
      "--strategy=tpu": "--strategy=tpu needs --tpu",
      "--strategy=tpu --tpu=grpc://nowhere": "--tpu: nowhere is not HOST:PORT",
      "--num_gpus=2": "--num_gpus is at most 1",
      "--mixed_precision=float64": "--mixed_precision=float64: .* <float32",
      "--strategy=parameter_server": "--strategy=parameter_server needs TF_CON",
      "--verification=no": "--verification=no: .* <full|fast|off>",
      "--saved_model_format=h5": "--saved_model_format=h5: .* <reusable|keras>",
      "--nonsense": "ERROR: --nonsense is not a flag",
      "digits": "ERROR: digits is not a flag",
      "--flagfile=/nowhere": "Unable to open flagfile: .*/nowhere",
      "--freezing_profiles=first_1": "Profiles are last_N .such as last_2.",
      "--export_dir=": "--export_dir=: It is required: the directory to write",
      "--export_dir={text}": "Cannot write --export_dir=DIR/text: .*Not a d",
      "--export_dir={text}/x": "Cannot write --export_dir=.*: DIR/text: Not a ",
      "--export_dir=/proc/x": "Cannot write --export_dir=/proc/x: /proc: No su",
      "--export_dir={read_only}/x": "--export_dir=.*/x: .* Read-only file sys",
      "--export_dir=/": "Cannot write|/ is a mount point",
      "--export_dir=gs://x/y": "gs://x/y is not a local directory",
      "--export_dir={out}[1]": r"--export_dir=\S*\[1\]: .* with \[ in it",
      "--export_dir={saved_model}": "saved_model has no assets.extra/README.md",
      "--export_dir={earlier_export}": "exists and is not empty. .*--overwrite",
      "--export_dir={directory}/.. --overwrite": "has .* in it: no program",
      "--keep_failed={directory}": "DIR/directory exists. Choose another path",
      "--keep_failed=/proc/x/y": "Cannot write --keep_failed=/proc/x/y: /proc",
      "--checkpoint_dir={out}": "export and .*export must be apart",
      "--checkpoint_dir=/proc/x": "Cannot write --checkpoint_dir=/proc/x",
      "--checkpoint_dir=": "--checkpoint_dir is empty",
      f"--checkpoint_dir={{out}}{'n' * 255}": "checkpoint_dir=.* name too long",
      "--backup_dir={out}/x": "export/x and .*export must be apart",
      "--backup_dir={text}": "Cannot write --backup_dir=DIR/text: .*Not a dire",
      "--backup_dir=a*b": r"--backup_dir=\S*/a\*b: .* with \* in it",
    },
  ),
  (
    f"exporters/mnist_cnn {_RESTORE}x",
    {
      "": r"--checkpoint_path: There is no checkpoint \S*/x: \S*/x.index does",
      "--epochs=2": "--epochs applies only with --train_on",
      "--held_out=0.1": "--held_out applies only with --train_on",
      "--weights=mean": "--weights=mean: .* <raw|average>",
      "--checkpoint_path={directory}": "directory has no checkpoint in it",
      "--checkpoint_path={empty}": "DIR/empty is a file, but not of a checkp",
      "--checkpoint_path={page}": "DIR/page is a web page, .*Download it again",
      "--checkpoint_path={lfs}": "DIR/lfs is a pointer of Git LFS.*git lfs",
      "--checkpoint_path={export.tar.gz}": "is an archive, .* Unpack it first",
      "--checkpoint_path={pytorch_model.bin}": "is weights of PyTorch, not a",
      "--checkpoint_path=/proc/self/mem": "Cannot read /proc/self/mem: Input",
      "--checkpoint_path={text}/x": "text/x.index does not exist",
      "--checkpoint_path={out}[1]": r"--checkpoint_path=\S*: .* with \[ in it",
    },
  ),
  (
    f"exporters/resnet {_TRAIN}",
    {
      "--export_type=x": "--export_type=x: .* <feature_vector|classification|",
      "--export_type=classification --endpoints=2": "Endpoints come with the f",
      "--normalization=x": "--normalization=x: .* <imagenet|",
      "--config_file=/nowhere": "--config_file=/nowhere: No such file",
      "--config_file={directory}": "--config_file=DIR/directory is a directory",
    },
  ),
  (
    "exporters/check --saved_model_dir={saved_model}",
    {
      "--saved_model_dir=": "It is required: the directory to check",
      "--saved_model_dir=/nowhere": "--saved_model_dir: /nowhere does not exi",
      "--saved_model_dir={directory}": "directory has no saved_model.pb",
      "--saved_model_dir={text}": "DIR/text is a file. Pass the directory",
      "--saved_model_dir={weights.h5}": "is weights of Keras in HDF5, not a Sa",
      "--saved_model_dir={saved_model}/saved_model.pb": "Give its directory",
      "--html={directory}": "--html=DIR/directory is a directory, not a file",
      "--html={directory}/x/y.html": "--html=DIR/.* is no directory",
      "--html={pipe}": "--html=DIR/pipe is a link, a pipe or a device",
      "--html={link}": "--html=DIR/link is a link, a pipe or a device",
      "--html={saved_model}/saved_model.pb": "is in the SavedModel DIR/saved_m",
      "--html={linked}/assets/a.html": "is in the SavedModel DIR/linked",
      "--html={an.index}": "DIR/an.index exists and is of a checkpoint",
      "--html={weights.h5}": "DIR/weights.h5 exists and is weights of Keras",
      "--html=/proc/x.html": "Cannot write --html=/proc/x.html: /proc: No su",
      "--html='{out}\n.html'": r"--html: DIR/.*export\\n.html has control char",
      "--saved_model_dir='{saved_model}\n'": "saved_model_dir: .*end of line",
      "--strict=maybe": "--strict=maybe: .*Non-boolean",
    },
  ),
  (
    "exporters/package --saved_model_dir={saved_model} --output_dir={out}",
    {
      "--output_dir=": "It is required: the directory to write",
      "--output_dir=gs://a/b": "gs://a/b is not a local directory",
      "--saved_model_dir={directory}": "directory has no saved_model.pb",
      "--saved_model_dir={linked}": "DIR/linked: assets/x is a symbolic link",
      "--card_file={list.json}": "list.json: write FIELD: VALUE in each line",
      "--card_file={text}": "DIR/text: write FIELD: VALUE in each line",
      "--card_file={half.json}": "half.json: not YAML: .* line 1, column",
      "--card_file={deep.yaml}": "deep.yaml: not YAML: maximum recursion",
      "--signing_key={text}": "text is no elliptic curve key in PEM: Unable",
      "--signing_key=/nowhere": "/nowhere is no .* in PEM: No such file",
      "--sigstore_token_file=/nowhere": "token_file=/nowhere: No such file",
      "--fine_tuning_record={text}": "record applies only with --card_file",
    },
  ),
  (
    "exporters/verify --package={directory}",
    {"--sigstore_identity=a": "--sigstore_issuer go together"},
  ),
  *(
    (
      f"exporters/{program} --package={{directory}}",
      {
        "--package=": "It is required: the directory of the package",
        "--package=/nowhere": "/nowhere: No such file or directory",
        "--package={text}": "DIR/text: Not a directory",
        "": "directory is no package .*: it has no manifest.json",
        "--package=gs://a/b": "gs://a/b must be local",
      },
    )
    for program in ("rebuild", "verify", "publish --to=hf://a/b")
  ),
  (
    "exporters/publish --package={directory}",
    {
      "--to=": "It is required: where to publish",
      "--to=s3://a/b": "--to=s3://a/b is none of file:///DIR, gs://",
      "--to=kaggle://a/b": "--to=kaggle://a/b is none of .*OWNER/MODEL/tensor",
    },
  ),
  (
    "exporters/compile_for_tpu --saved_model_dir={saved_model} --libtpu={text}",
    {
      "--topology=v9:2x2": "--topology=v9:2x2 must start with one of v2, v3",
      "--topology=v5e": "--topology=v5e must .* end with the chips",
      "--topology=v5e:0x2": "--topology=v5e:0x2 must .* end with the chips",
      "--batch_size=many": "--batch_size=many: It must be a positive number or",
      "--image_size=0": "--image_size=0: 0 is not",
      "--libtpu=/nowhere.so": "--libtpu=/nowhere.so: No such file",
      "--libtpu={text}": "--libtpu=DIR/text is no shared library",
      "--saved_model_dir=/nowhere": "--saved_model_dir: /nowhere does not exi",
    },
  ),
  (
    "exporters/fine_tuned --saved_model_dir={saved_model} --export_dir={out}",
    {
      "--saved_model_dir=": "It is required: what was fine-tuned",
      "--saved_model_dir={export.tar.gz}": "is an archive, .*Unpack it first",
      "--original_dir=/nowhere": "--original_dir: /nowhere does not exist",
      "--original_dir={directory}": "--original_dir: .* has no saved_model.pb",
      "--export_dir={saved_model}/x": "must be apart",
      "--export_dir={saved_model} --overwrite": "must be apart",
    },
  ),
  (
    "exporters/litert --saved_model_dir={saved_model} --output_file={out}",
    {
      "--saved_model_dir=": "The flag is required",
      "--saved_model_dir=/nowhere": "--saved_model_dir: /nowhere does not exi",
      "--output_file=": "The flag is required",
      "--output_file={text}": "DIR/text exists. Choose another file, or say",
      "--output_file={directory}": "directory is a directory, not a file",
      "--output_file=/proc/x": "Cannot write --output_file=/proc",
      "--output_file={out}/x": "--output_file=.* is no directory",
      "--output_file={link} --overwrite": "DIR/link is a link, a pipe or a dev",
      "--output_file={saved_model}/x --overwrite": "x is in the SavedModel DIR",
      "--quantization=int4": "--quantization=int4: .* <none|float16|dynamic_",
      "--image_size=0": "--image_size=0: 0 is not",
      "--calibration_data=/nowhere": "--calibration_data=/nowhere: .*existing",
      "--trainable=head": "--trainable and --classes go together",
      "--trainable=head --classes=1": "--classes=1: 1 is not",
      "--trainable=all --classes=2 --quantization=int8": "no quantization",
    },
  ),
  (
    "exporters/tf_module --export_dir={out} --module=real_nvp",
    {
      "": "either --checkpoint_path=PATH or --train_on=NAME; neither with",
      "--module=x": "--module=x: .* <product|real_nvp>",
      "--train_on=suns": "--train_on=suns: .* <moons>",
      "--module=product --train_on=moons": "neither with --module=product",
      "--module=product --units=4": "apply only with --module=real_nvp",
      "--train_on=moons --num_features=1": "--num_features=1: 1 is not",
      "--train_on=moons --units=99999999999": "--units=99999999999: .* range",
    },
  ),
  (
    "exporters/text_embedding --export_dir={out}",
    {
      "": r"Exactly one of \(word_vectors_file, train_on\)",
      "--train_on=python_docs --word_vectors_file={vectors}": "Exactly one of",
      "--train_on=docs": "--train_on=docs: .* <python_docs>",
      "--train_on=python_docs --dim=0": "--dim=0: 0 is not",
      "--word_vectors_file={vectors} --dim=3": "--dim applies only with --trai",
      "--word_vectors_file=/nowhere": "--word_vectors_file=/nowhere: No such",
      "--word_vectors_file={directory}": "--word_vectors_file=.* is a direct",
      "--word_vectors_file=": "--word_vectors_file is empty",
      "--word_vectors_file=gs://x/y": "=gs://x/y: this file must be local",
      "--word_vectors_file=/proc/self/mem": "=/proc/self/mem: Input/output err",
      "--word_vectors_file={vectors} --num_oov_buckets=-1": "buckets=-1: -1 is",
    },
  ),
  (
    "exporters/text_rnn --export_dir={out} --train_on={corpus.txt}",
    {
      "--train_on=/nowhere": "--train_on=.*: /nowhere does not exist",
      "--train_on={corpus.txt},{out}*": r"--train_on=.*\* does not exist",
      "--train_on={directory}": "--train_on=.*: DIR/directory is a directory",
      "--cell=rnn": "--cell=rnn: .* <lstm|gru>",
      "--units=0": "--units=0: 0 is not",
      "--dropout_rate=1": "--dropout_rate=1: 1.0 is not",
      "--seq_length=0": "--seq_length=0: 0 is not",
      "--backup_dir={out}/x": "must be apart",
    },
  ),
  (
    "exporters/bert_pretraining --train_on={corpus.txt} --do_lower_case"
    " --encoder_config_file={encoder.yaml} --checkpoint_dir={out}",
    {
      "--checkpoint_dir=": "--checkpoint_dir=: The flag is required",
      "--train_on=": "--train_on=.*: The flag is required",
      "--bert_config_file={half.json}": "Exactly one of .*encoder_config_file",
      "--encoder_config_file=/nowhere": "--encoder_config_file=/nowhere: No su",
      "--encoder_config_file=": "--encoder_config_file is empty",
      "--encoder_config_file={pipe}": "DIR/pipe is a directory, a pipe or a",
      "--seq_length=4": "--seq_length=4: 4 is not",
      "--masking_rate=1": "--masking_rate=1: 1.0 is not",
      "--checkpoint_dir={text}": "Cannot write --checkpoint_dir=DIR/text",
      "--checkpoint_dir={saved_model}": "saved_model is a SavedModel. Choose",
    },
  ),
  (
    "exporters/bert --export_dir={out} --do_lower_case --vocab_file={vocab}"
    " --encoder_config_file={encoder.yaml} --checkpoint_path={an.index}"
    " --pooler=random",
    {
      "--checkpoint_path=x": "--checkpoint_path: There is no checkpoint",
      "--vocab_file=/nowhere": "--vocab_file=/nowhere: No such file",
      "--sp_model_file={text}": "either --vocab_file=PATH or --sp_model_file",
      "--bert_config_file={half.json}": "either --encoder_config_file=PATH or",
      "--pooler=x": "--pooler=x: .* <checkpoint|next_sentence|random|",
      "--train_on={corpus.txt}": "either --checkpoint_path=PATH or --train_on",
      "--export_type=x": "--export_type=x: .* <encoder|",
      "--export_type=preprocessing": "neither with --export_type=preprocessing",
      "--export_type=all --saved_model_format=keras": "for --export_type=encod",
      "--normalize": "apply only with --export_type=text_embedding",
      "--seq_length=2": "--seq_length=2: 2 is not",
      "--seed=-1": "--seed=-1: -1 is not",
    },
  ),
  (
    "exporters/bert --export_dir={out} --encoder_config_file={encoder.yaml}"
    " --checkpoint_path={an.index}",
    {
      "--vocab_file={vocab} --pooler=random": "Say --do_lower_case",
      "--do_lower_case --pooler=random": "either --vocab_file",
      "--do_lower_case --vocab_file={vocab}": "needs --pooler",
      "--do_lower_case --vocab_file={vocab} --export_type=text_embedding"
      " --pooling=pooled": "--pooling=pooled only",
    },
  ),
  (
    "exporters/bert --export_dir={out} --encoder_config_file={encoder.yaml}"
    " --do_lower_case --vocab_file={vocab} --train_on={corpus.txt}",
    {"--pooler=checkpoint": "--train_on does not train a pooler"},
  ),
  (
    "exporters/bert --export_dir={out} --export_type=preprocessing"
    " --do_lower_case --sp_model_file={text}",
    {"--tokenize_with_offsets": "so its tokens have no offsets"},
  ),
  (
    "exporters/text_rnn --export_dir={out}",
    {
      "": "either --checkpoint_path=PATH or --train_on=NAME",
      "--checkpoint_path=x --seq_length=9": "--seq_length applies only with",
    },
  ),
  *(
    (
      f"integration_tests/use_{name} --saved_model_dir=/nowhere {others}",
      {"": "/nowhere does not exist", "--epochs=x": "--epochs=x: It must be"},
    )
    for name, others in {
      **dict.fromkeys(_ARCHITECTURES, ""),
      **dict.fromkeys(("keras_model", "mnist_cnn", "tf_module"), ""),
      **dict.fromkeys(("text_embedding", "text_rnn"), ""),
      "bert": "--preprocessor_dir=/nowhere",
    }.items()
  ),
]

# Errors after TensorFlow is imported.
LATER: Table = [
  (
    f"exporters/mnist_cnn {_TRAIN}",
    {
      "--train_on={empty}": "DIR/empty",
      "--train_on={text}": "DIR/text: these are no TFRecords",
      "--train_on={directory}": "directory has 0 classes",
      "--held_out=0.2": "has .*, to be held out. Omit --held_out",
      "--class_names_file={empty}": "DIR/empty",
      "--class_names_file={text}": "names has 1 of them",
      "--class_names_file={latin1}": "latin1, line 6: this is not UTF-8",
      "--num_gpus=1": "--num_gpus=1: TensorFlow finds",
      "--backup_dir=foo://x": "File system scheme 'foo' not implemented",
    },
  ),
  (
    f"exporters/mnist_cnn {_RESTORE}{{mnist_cnn}}",
    {
      "--checkpoint_path={saved_model}": "variables.index: No such file or di",
      "--checkpoint_path={half_index}": "Cannot read .*half_index/checkpoint-1",
      "--checkpoint_path={flipped_index}": "flipped_index/.* truncated or dama",
      "--checkpoint_path={lost_index}": "names checkpoint-1, which is not",
      "--checkpoint_path={half_data}": "half_data/.* truncated or damaged",
      "--checkpoint_path={empty_data}": "empty_data/.* truncated or damaged",
      "--checkpoint_path={no_data}": "no_data/.* truncated or damaged",
      "--checkpoint_path={flipped_data}": "flipped_data/.*Checksum does not m",
      "--checkpoint_path={resnet}": r"resnet/.* no value for conv1/kernel:0 \(",
      "--checkpoint_path={weights.h5}": "is weights of Keras in HDF5, not a",
      "--checkpoint_path=foo://x": "File system scheme 'foo' not implemented",
      "--weights=average": "has no moving averages",
      "--class_names_file={empty}": "DIR/empty",
    },
  ),
  (
    f"exporters/resnet {_RESTORE}{{resnet}} --experiment=resnet_small",
    {
      "--checkpoint_path={mnist_cnn}": "mnist_cnn/.* does not match the model",
      "--checkpoint_path={weights.h5}": "Cannot read DIR/weights.h5",
      "--experiment=nonsense": "no experiment nonsense. .* are resnet_small",
      "--experiment=vit_small": "no experiment vit_small",
      "--endpoints=7": "The model has no 7; it has 2, 3",
      "--class_names_file={text}": "DIR/text names 1 classes, but .* has 10",
      "--config_file={empty}": "DIR/empty: it must have keys and values",
      "--config_file={page}": "DIR/page: it must have keys and values",
      "--config_file={export.tar.gz}": "export.tar.gz: line 1.* is not UTF-8",
      "--config_file={encoder.yaml}": "encoder.yaml: The key 'bert' does not",
      "--params_override=a": "a is neither a file that can be read nor YAML",
      **{
        f"--params_override={override}": expected
        for override, expected in {
          "task=3": "it must have keys and values",
          "task.model=": "task.model is None; it must have fi",
          "task.model.num_class=3": "The key 'num_class' does not exist",
          "task.model.num_classes=ten": "num_classes is 'ten'; it must be a nu",
          "task.model.num_classes=-1": "num_classes is -1; it must be",
          "task.model.backbone.resnet.model_id=51": "model_id is 51; there are",
          "task.model.backbone.type=vit": "is of type vit",
          "task.model.backbone.resnet.stem_type=v9": "stem_type=v9: Stem type ",
          "task.model.norm_activation.activation=geluu": "Unknown activation",
          "task.model.norm_activation.norm_momentum=-3": "it must be from 0 to",
          "task.model.backbone.resnet.depth_multiplier=0": "multiplier=0: Inva",
          "task.model.kernel_initializer=he_norml": "Unknown initializer: 'he",
          "task.model.input_size=[32,32]": r"must be \[height, width, 3\]",
          "task.model.input_size=[32,32,1]": "for grey images",
          "task.model.dropout_rate=1": "dropout_rate is 1; it must be from 0",
          "task.losses.l2_weight_decay=0.1x": "weight_decay is '0.1x'; it must",
          "task.model.norm_activation.norm_epsilon=-1": "epsilon is -1; it mus",
          "task.losses.l2_weight_decay=-1": "weight_decay is -1; it must be 0",
        }.items()
      },
    },
  ),
  *(
    (
      f"exporters/{name} {_RESTORE}{{mnist_cnn}} --experiment={name}_small",
      {
        "": "mnist_cnn/.* does not match the model",
        f"--params_override=task.model.backbone.{variant}=x": "is .*x.*; ",
      },
    )
    for name, variant in _ARCHITECTURES.items()
  ),
  (
    "exporters/check --saved_model_dir={product}",
    {
      "--saved_model_dir={half_export}": "half_export.* truncated or damaged",
      "--saved_model_dir=foo://x": "foo://x is no SavedModel that can be",
      "--excepted_rules=R99": "--excepted_rules: a rule of this name does not",
    },
  ),
  (
    "exporters/compile_for_tpu --saved_model_dir={product} --libtpu=/bin/true",
    {
      "--record --saved_model_dir={bad_model}": "bad_model/.*model.json is no",
      "--record --saved_model_dir={deep_model}": "model.json is no JSON: max",
      "--record --saved_model_dir={nan_model}": "model.json: Out of range flo",
      "--record --saved_model_dir={no_card}": "README.md is .*not a file",
    },
  ),
  (
    "exporters/litert --saved_model_dir={product} --output_file={out}",
    {
      "--signature=x": "has no signature x. It has: serving_default. Choose",
      "--calibration_data=digits": "--calibration_data are images, and the si",
    },
  ),
  (
    "exporters/fine_tuned --saved_model_dir={product} --export_dir={out}"
    " --verification=off",
    {
      "": "does not say what it was fine-tuned from. Set --original_dir",
      "--original_dir={product} --fine_tuned_on=x --piece=y": "no piece y",
      "--saved_model_dir={half_export}": "half_export.* truncated or damaged",
      "--saved_model_dir={lost_variables}": "lost_variables cannot be loaded",
      "--fine_tuned_on=x --original_dir={bad_model}": "bad_model/.*model.json",
      "--fine_tuned_on=x --original_dir={bad_report}": "bad_report/.*json: ",
      "--fine_tuned_on=x --original_dir={no_fingerprint}": "no_fingerprint",
      "--fine_tuned_on=x --original_dir={bad_fingerprint}": "bad_fingerprint",
    },
  ),
  (
    "exporters/tf_module --export_dir={out} --verification=off",
    {
      "--module=product --export_dir={full}/x": "full/.*No space left on",
      "--module=real_nvp --train_on=moons --num_features=3": "--num_features=",
      "--module=real_nvp --checkpoint_path={mnist_cnn}": "does not match the m",
    },
  ),
  (
    "exporters/text_embedding --export_dir={out} --verification=off"
    " --word_vectors_file={vectors}",
    {
      "--separators=(": "--separators: .*missing",
      "--separators=,*": "--separators=,.* matches an empty string",
      "--word_vectors_format=fasttext": "vectors: line 1: it must have the num",
      "--word_vectors_file={empty}": "DIR/empty: line 1: it is empty",
      "--word_vectors_file={ragged}": "DIR/ragged: line 2: it has 1 values",
      "--word_vectors_file={letters}": "DIR/letters: line 1: could not convert",
      "--word_vectors_file={nan}": "DIR/nan: line 1: .* not finite",
      "--word_vectors_file={overflow}": "DIR/overflow: line 1: .* not finite",
      "--word_vectors_file={too_many}": "DIR/too_many: .* are 3 words, but the",
      "--word_vectors_file={no_values}": "DIR/no_values: line 1: there are no",
      "--word_vectors_file={latin1}": "DIR/latin1: line 1: there are no vec",
      "--word_vectors_file={half.gz}": "DIR/half.gz: .*truncated or damaged",
    },
  ),
  (
    "exporters/text_rnn --export_dir={out} --verification=off --epochs=0",
    {
      "--train_on={few.txt}": "few.txt: 1 documents, .* needs 50 or more",
      "--train_on={empty}": "DIR/empty: 0 documents",
      "--train_on={latin1_corpus.txt}": "corpus.txt, line 1: this is not UTF-8",
      "--train_on={no_text.csv}": "no_text.csv: the columns are a, b. Set --te",
      "--train_on={quote.csv}": "quote.csv, line 2: unexpected end of data",
      "--train_on={broken.jsonl}": "broken.jsonl, line 2: ",
      "--train_on={broken.parquet}": "broken.parquet: ",
      "--train_on={corpus.txt},python_docs": "python_docs does not exist",
      "--train_on={broken.txt.gz}": "broken.txt.gz.*ot a gzipped file",
      "--train_on={corpus.txt} --text_column=x": "--text_column=x applies only",
      "--train_on={no_text.csv} --text_column=x": "no_text.csv has no column x",
    },
  ),
  (
    "exporters/bert_pretraining --train_on={corpus.txt} --do_lower_case"
    " --epochs=0 --seq_length=16 --batch_size=2"
    " --encoder_config_file={many_tokens.yaml}",
    {
      "--checkpoint_dir={half_run}": "half_run/ckpt-0 is of .* or damaged",
      "--checkpoint_dir={mnist_cnn}": "has checkpoints of another program",
    },
  ),
  (
    f"exporters/text_rnn {_RESTORE}{{text_rnn}} --units=4 --embedding_size=4",
    {
      "--units=8": r"text_rnn/.* does not match the model: it has \(",
      "--num_layers=2": "text_rnn/.* does not match the model: it has no val",
      "--cell=gru": "text_rnn/.* does not match the model",
      "--checkpoint_path={not_finite}": r"not_finite/ckpt has values of \S*k",
    },
  ),
  (
    f"exporters/bert {_RESTORE}{{bert}} --vocab_file={{vocab}} --do_lower_case"
    " --encoder_config_file={encoder.yaml} --pooler=random --seq_length=16",
    {
      "": "bert/ckpt-0, .* does not match the model",
      "--checkpoint_path={text_rnn}": "text_rnn/.* does not match the model",
      "--seq_length=64": "--seq_length=64 is past .* at most 16",
      "--nodo_lower_case": "vocab does not go with --nodo_lower_case",
      "--vocab_file={empty}": "DIR/empty: line 1 is empty",
      "--vocab_file={gap}": "DIR/gap: line 7 is empty. .* ids from 6 on: 'c'",
      "--vocab_file={twice}": "DIR/twice: b is in it twice, lines 7, 8",
      "--vocab_file={no_mask}": r"DIR/no_mask: it lacks \[MASK\]",
      "--vocab_file={cased}": "DIR/cased does not go with --do_lower_case",
      "--vocab_file={short}": "DIR/short has 8 tokens, .* vocab_size of 9",
      "--vocab_file={latin1}": "DIR/latin1: line 6.* is not UTF-8",
      "--vocab_file={export.tar.gz}": "export.tar.gz: line 1: .*gzip",
      **{
        f"--encoder_config_file={{{name}}}": expected
        for name, expected in {
          "empty": "DIR/empty: it has no `type`",
          "page": "DIR/page: it has no `type`",
          "list.yaml": "list.yaml: it has no `type`",
          "bytes.yaml": "bytes.yaml: not YAML",
          "deep.yaml": "deep.yaml: it is nested too deeply",
          "python.yaml": "python.yaml: not YAML",
          "unknown.yaml": "unknown keys num_layer .*num_layers.*, hiden_size",
          "word.yaml": "word.yaml: num_layers is 'one', and must be int",
          "none.yaml": "none.yaml: num_layers is 0, and must be at least 1",
          "rate.yaml": "rate.yaml: dropout_rate is 1.5, and must be from 0",
          "kind.yaml": "kind.yaml: unknown type brt .*bert",
          "activation.yaml": "with hidden_activation=geluu: Unknown activation",
          "huge.yaml": "huge.yaml: hidden_size is 9+, and must be less",
          "heads.yaml": "bert/ckpt-0, .* does not match the model",
        }.items()
      },
    },
  ),
  (
    f"exporters/bert {_RESTORE}{{bert}} --vocab_file={{vocab}} --do_lower_case"
    " --pooler=random",
    {
      "--bert_config_file={half.json}": "half.json: not JSON",
      "--bert_config_file={list.json}": "list.json: it is not an object",
      "--bert_config_file={text.json}": "text.json: vocab_size is '9', and mu",
      "--bert_config_file={gpt.json}": "gpt.json: its model_type is gpt2",
      "--bert_config_file={no_size.json}": "no_size.json: it has no vocab_size",
      "--bert_config_file={encoder.yaml}": "If it is YAML, pass it as --encod",
    },
  ),
  (
    "exporters/bert --export_type=preprocessing --export_dir={out}"
    " --do_lower_case",
    {"--sp_model_file={text}": "DIR/text: not a SentencePiece model"},
  ),
]
