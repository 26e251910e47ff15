"""Recipe name -> ordered stages. The only place that knows the order, what each stage reads and writes, and which
stage may turn private data into differentially private data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Label(StrEnum):
    """Privacy label of an artifact, least restrictive first."""

    PUBLIC = "public"
    DP = "dp"
    PRIVATE = "private"


_ORDER: Final = {Label.PUBLIC: 0, Label.DP: 1, Label.PRIVATE: 2}


def most_restrictive(labels: list[Label]) -> Label:
    """The label of something computed from inputs with these labels; of nothing, ``public``."""
    return max(labels, key=_ORDER.__getitem__, default=Label.PUBLIC)


@dataclass(frozen=True)
class StageDef:
    """A stage of a recipe.

    ``reads`` and ``writes`` name artifact kinds; the datasets are the kinds ``dataset`` and ``prompts``.
    ``private_writes`` are kept private whatever the inputs. ``accounted`` marks the stage whose other outputs are
    ``dp`` because it is an accounted mechanism over its private input.
    """

    name: str
    queue: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    private_writes: frozenset[str] = field(default_factory=frozenset)
    accounted: bool = False

    def label(self, kind: str, input_labels: list[Label]) -> Label:
        """Label of the output ``kind`` when the inputs carried ``input_labels``."""
        if kind in self.private_writes:
            return Label.PRIVATE
        label = most_restrictive(input_labels)
        return Label.DP if self.accounted and label is Label.PRIVATE else label


QUEUES: Final = ("trainer", "synth", "sandbox", "validator", "evaluator")

PRIVCODE: Final = (
    StageDef(
        name="sanitize",
        queue="trainer",
        reads=("dataset",),
        writes=("junior_adapter", "privacy_receipt", "training_metrics"),
        private_writes=frozenset({"training_metrics"}),
        accounted=True,
    ),
    StageDef(name="merge_junior", queue="trainer", reads=("junior_adapter",), writes=("junior_model",)),
    StageDef(name="synthesize", queue="synth", reads=("junior_model", "prompts"), writes=("candidates",)),
    StageDef(name="execute", queue="sandbox", reads=("candidates",), writes=("executed",)),
    StageDef(name="round_trip", queue="validator", reads=("executed",), writes=("scored", "synthetic")),
    StageDef(name="boost", queue="trainer", reads=("synthetic",), writes=("premium_adapter",)),
    StageDef(name="merge_premium", queue="trainer", reads=("premium_adapter",), writes=("premium_model",)),
    StageDef(
        name="evaluate",
        queue="evaluator",
        reads=("premium_model",),
        writes=("evaluation", "evaluation_samples"),
    ),
    StageDef(
        name="audit",
        queue="evaluator",
        reads=("junior_model", "synthetic", "premium_model"),
        writes=("canary_audit",),
    ),
    StageDef(
        name="report",
        queue="evaluator",
        reads=("privacy_receipt", "candidates", "executed", "scored", "evaluation", "canary_audit"),
        writes=("report_json", "report_html"),
    ),
)

RECIPES: Final = MappingProxyType({"privcode": PRIVCODE})


def stage_def(recipe: str, name: str) -> StageDef:
    return next(stage for stage in RECIPES[recipe] if stage.name == name)
