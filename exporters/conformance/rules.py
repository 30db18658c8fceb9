"""The rules of a reusable SavedModel, as far as they can be checked.

Their sources are TensorFlow Hub's documentation (reusable SavedModels; common
SavedModel APIs for images and for text) and faults found in exports since. Each
rule is a function from the SavedModel to a finding.
"""

from collections.abc import Callable, Iterator
import dataclasses

from exporters.conformance import findings
from exporters.conformance import of_all
from exporters.conformance import of_images
from exporters.conformance import of_text
from exporters.conformance import subject as subject_lib

Subject = subject_lib.Subject

_IMAGES = ("image", "video")


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule.

  Attributes:
    name: A short name, such as R1.
    level: `must`, or `should` for advice.
    judge: Returns the finding. Its docstring is the text of the rule.
    needs: What `judge` examines: the `file`, the loaded `object`, or a `call`.
    kinds: The kinds of SavedModels that the rule applies to. Empty: all.
  """

  name: str
  level: str
  judge: Callable[[Subject], findings.Finding]
  needs: str = "call"
  kinds: tuple[str, ...] = ()

  @property
  def text(self) -> str:
    """The text of the rule."""
    return " ".join(self.judge.__doc__.split())


def judge(subject: Subject) -> Iterator[tuple[Rule, findings.Finding]]:
  """Yields the finding about each rule, in their order."""
  for rule in RULES:
    if rule.kinds and subject.kind not in rule.kinds:
      others = f"for {' or '.join(rule.kinds)}; this is {subject.kind}"
      yield rule, findings.not_applicable(others)
    elif rule.needs != "file" and subject.model is None:
      yield rule, findings.not_decidable(subject.unloaded)
    elif rule.needs == "call" and not subject.traces:
      yield rule, findings.not_decidable("it cannot be called")
    else:
      try:
        yield rule, rule.judge(subject)
      except Exception as e:  # A stranger's program may raise anything.
        reason = f"trying it failed: {subject_lib.first_line(e)}"
        yield rule, findings.not_decidable(reason)


RULES = (
  Rule("S1", "must", of_all.is_harmless, "file"),
  Rule("R1", "must", of_all.is_callable, "file"),
  Rule("R2", "must", of_all.takes_one_input),
  Rule("R3", "must", of_all.has_modes),
  Rule("R4", "must", of_all.has_traces),
  Rule("R5", "must", of_all.lists_variables),
  Rule("R6", "must", of_all.has_losses, "object"),
  Rule("R7", "should", of_all.can_be_tuned),
  Rule("R8", "should", of_all.batch_is_free),
  Rule("R9", "must", of_all.sub_objects_are_whole, "object"),
  Rule("R10", "must", of_all.is_clean, "file"),
  Rule("R11", "should", of_all.is_served, "file"),
  Rule("R12", "should", of_all.returns_logits, kinds=(*_IMAGES, "plain")),
  Rule("R13", "must", of_all.is_documented, "file"),
  Rule(
    "R14", "must", of_all.compiles_once, kinds=(*_IMAGES, "encoder", "plain")
  ),
  Rule("I1", "must", of_images.takes_images, "file", kinds=_IMAGES),
  Rule("I2", "must", of_images.returns_features, kinds=_IMAGES),
  Rule("I3", "must", of_images.returns_classes, "file", kinds=_IMAGES),
  Rule("I4", "should", of_images.size_is_free, kinds=_IMAGES),
  Rule("I5", "should", of_images.momentum_can_be_set, kinds=_IMAGES),
  Rule("T1", "must", of_text.embeds_text, kinds=("text embedding",)),
  Rule("T2", "must", of_text.preprocesses, kinds=("preprocessor",)),
  Rule("T3", "must", of_text.encodes, kinds=("encoder",)),
  Rule("T4", "must", of_text.names_its_preprocessor, kinds=("encoder",)),
  Rule("T5", "must", of_text.has_language_model, kinds=("encoder",)),
  Rule(
    "T6",
    "should",
    of_text.names_its_vocabulary,
    kinds=("encoder", "preprocessor"),
  ),
)
