"""Trains word vectors by counting, without gradients.

The vectors are a truncated singular value decomposition of the positive
pointwise mutual information of words that occur near each other (Levy and
Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", 2014, with
the smoothing of Levy, Goldberg and Dagan, 2015). Vectors are scaled to the
weights of smooth inverse frequency (Arora et al., "A Simple but Tough-to-Beat
Baseline for Sentence Embeddings", 2017), so rare words dominate means of
vectors.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
import dataclasses

from etils import epy

# Programs import this module before they parse their flags.
with epy.lazy_imports():
  import numpy as np
  from scipy import sparse
  from sklearn import decomposition
  import threadpoolctl


@dataclasses.dataclass(frozen=True)
class Config:
  """How to train word vectors.

  Attributes:
    dim: Dimension of the vectors.
    min_count: Minimum number of occurrences of a word that gets a vector.
    window: Maximum distance between two words that count as near.
    smoothing: Exponent of the counts of contexts.
    frequency: The relative frequency at which a word has a weight of 1/2. More
      frequent words have less.
    seed: Seed of the decomposition.
  """

  dim: int = 300
  min_count: int = 2
  window: int = 8
  smoothing: float = 0.75
  frequency: float = 1e-3
  seed: int = 0


def train(
  texts: Sequence[Sequence[bytes]], config: Config
) -> tuple[list[bytes], np.ndarray]:
  """Trains word vectors.

  Args:
    texts: The words of each text.
    config: How to train.

  Returns:
    The words, the most frequent first, and their vectors, float32 `[n, dim]`.

  Raises:
    ValueError: The number of words with a vector is not above `dim`.
  """
  counts = collections.Counter(word for text in texts for word in text)
  # Words of equal count are in alphabetical order, for a deterministic result.
  words = sorted(
    (w for w, count in counts.items() if count >= config.min_count),
    key=lambda w: (-counts[w], w),
  )
  if len(words) <= config.dim:
    raise ValueError(
      f"only {len(words)} words occur {config.min_count} times or more; vectors"
      f" of dimension {config.dim} need more. Choose a smaller dimension."
    )
  ids = {word: i for i, word in enumerate(words)}
  texts = [np.array([ids[w] for w in t if w in ids], np.int64) for t in texts]
  svd = decomposition.TruncatedSVD(config.dim, random_state=config.seed)
  # One thread, because rounding depends on the number of threads.
  with threadpoolctl.threadpool_limits(1):
    vectors = svd.fit_transform(_information(texts, len(words), config))
  vectors /= np.sqrt(svd.singular_values_)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
  frequency = np.array([counts[w] for w in words]) / counts.total()
  weights = config.frequency / (config.frequency + frequency)
  return words, np.float32(vectors * weights[:, np.newaxis])


def _information(
  texts: Sequence[np.ndarray], num_words: int, config: Config
) -> sparse.csr_matrix:
  """Returns the positive pointwise mutual information of pairs of words."""
  near = sparse.csr_matrix((num_words, num_words))
  for distance in range(1, config.window + 1):
    pairs = [(text[:-distance], text[distance:]) for text in texts]
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    near += sparse.csr_matrix(
      (np.full(len(left), 1.0 / distance), (left, right)), near.shape
    )
  near = (near + near.T).tocoo()
  of_word = np.asarray(near.sum(axis=1)).ravel()
  of_context = of_word**config.smoothing
  of_context /= of_context.sum()
  information = np.log(near.data / (of_word[near.row] * of_context[near.col]))
  return sparse.csr_matrix(
    (np.maximum(information, 0.0), (near.row, near.col)), near.shape
  )
