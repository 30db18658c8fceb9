"""The rules of a reusable SavedModel, as far as they can be checked.

Their sources are TensorFlow Hub's documentation (reusable SavedModels; common
SavedModel APIs for images and for text) and bugs that were found in exports.
Each rule is a function from the SavedModel to a finding.
"""

from collections.abc import Callable, Iterator
import dataclasses

from exporters.conformance import findings
from exporters.conformance import of_all
from exporters.conformance import of_classifiers
from exporters.conformance import of_images
from exporters.conformance import of_inference
from exporters.conformance import of_inputs
from exporters.conformance import of_sequences
from exporters.conformance import of_text
from exporters.conformance import of_training
from exporters.conformance import of_variables
from exporters.conformance import subject as subject_lib
from exporters.reusable import kinds as kinds_lib

Subject = subject_lib.Subject


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule.

  Attributes:
    name: A short name, such as R1.
    level: `must`, or `should` for advice.
    judge: Returns the finding. Its docstring is the text of the rule.
    needs: What `judge` examines: the `file`, the loaded `object`, or a `call`.
    last: Whether it is judged after all others, because it may be slow or crash
      the process.
  """

  name: str
  level: str
  judge: Callable[[Subject], findings.Finding]
  needs: str = "call"
  last: bool = False

  @property
  def text(self) -> str:
    """The text of the rule."""
    return " ".join(self.judge.__doc__.split())

  @property
  def kinds(self) -> list[str]:
    """The kinds of SavedModels that the rule applies to. Empty: all."""
    return [kind.name for kind in kinds_lib.KINDS if self.name in kind.rules]

  def is_for(self, kind: kinds_lib.Kind) -> bool:
    """Returns whether the rule applies to a kind."""
    if self.name in kind.without:
      return False
    return not self.kinds or kind.name in self.kinds


def judge(subject: Subject) -> Iterator[tuple[Rule, findings.Finding]]:
  """Yields the finding about each rule, in the order of `ORDER`."""
  for rule in ORDER:
    yield rule, judge_one(subject, rule)


def judge_one(subject: Subject, rule: Rule) -> findings.Finding:
  """Returns the finding about a rule."""
  if not rule.is_for(subject.kind):
    others = " or ".join(rule.kinds) or "models to train"
    reason = f"for {others}; this is {subject.kind.name}"
    return findings.not_applicable(reason)
  if rule.needs != "file" and subject.model is None:
    return findings.not_decidable(subject.unloaded)
  try:
    if rule.needs == "call" and subject.kind.name == "Keras 3 export":
      subject = of_all.endpoint(subject)
    if rule.needs == "call" and not subject.traces:
      return findings.not_decidable("it cannot be called")
    return rule.judge(subject)
  except subject_lib.NoInputError as e:
    return findings.not_decidable(str(e))
  except Exception as e:  # A stranger's program may raise anything.
    reason = f"trying it failed: {subject_lib.cause(e)}"
    return findings.not_decidable(reason)


RULES = (
  Rule("S1", "must", of_all.is_harmless, "file"),
  Rule("R1", "must", of_all.is_callable, "file"),
  Rule("R2", "must", of_all.takes_one_input),
  Rule("R3", "must", of_training.has_modes),
  Rule("R4", "must", of_inference.has_traces),
  Rule("R5", "must", of_variables.lists_variables),
  Rule("R6", "must", of_variables.has_losses, "object"),
  Rule("R7", "should", of_all.can_be_tuned),
  Rule("R8", "should", of_inference.batch_is_free),
  Rule("R9", "must", of_all.sub_objects_are_whole, "object"),
  Rule("R10", "must", of_all.is_clean, "file"),
  Rule("R11", "should", of_inference.is_served, "file"),
  Rule("R12", "should", of_inference.returns_logits),
  Rule("R13", "must", of_all.is_documented, "object"),
  Rule("R14", "must", of_all.compiles_once, last=True),
  Rule("R15", "must", of_inference.depends_on_input_alone),
  Rule("R16", "should", of_training.is_random),
  Rule("R17", "should", of_inputs.have_effect),
  Rule("K1", "must", of_all.serves, "object"),
  Rule("I1", "must", of_images.takes_images, "file"),
  Rule("I2", "must", of_images.returns_features),
  Rule("I3", "must", of_images.returns_classes),
  Rule("I4", "should", of_images.size_is_free),
  Rule("I5", "should", of_images.momentum_can_be_set),
  Rule("T1", "must", of_text.embeds_text),
  Rule("T2", "must", of_text.preprocesses),
  Rule("T3", "must", of_text.encodes),
  Rule("T4", "must", of_text.names_its_preprocessor),
  Rule("T5", "must", of_text.has_language_model),
  Rule("T6", "should", of_text.names_its_vocabulary),
  Rule("T7", "should", of_text.names_its_special_tokens),
  Rule("T8", "should", of_text.runs_on_tpu_hosts, "file"),
  Rule("W1", "must", of_text.embeds_words),
  Rule("G1", "must", of_sequences.generates),
  Rule("G2", "must", of_sequences.steps),
  Rule("G3", "must", of_sequences.tokenizes),
  Rule("C1", "must", of_sequences.is_cell),
  Rule("D1", "must", of_classifiers.classifies),
  Rule("D2", "must", of_classifiers.decodes),
)

# The order in which the rules are judged.
ORDER = sorted(RULES, key=lambda rule: rule.last)
