"""Recipe name -> ordered stages. The only place that knows the order, what each stage reads and writes, which model it
starts from, and which stage may turn private data into differentially private data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from privcode.specs import JobSpec


class Label(StrEnum):
    """Privacy label of an artifact, least restrictive first."""

    PUBLIC = "public"
    DP = "dp"
    PRIVATE = "private"


_ORDER: Final = {Label.PUBLIC: 0, Label.DP: 1, Label.PRIVATE: 2}


def most_restrictive(labels: list[Label]) -> Label:
    """The label of something computed from inputs with these labels; of nothing, ``public``."""
    return max(labels, key=_ORDER.__getitem__, default=Label.PUBLIC)


@dataclass(frozen=True, kw_only=True)
class StageDef:
    """A stage of a recipe.

    ``reads`` and ``writes`` name artifact kinds; the data sets are the kinds ``dataset``, ``prompts`` and
    ``warm_up_pairs``, and ``kept_pairs`` is what another job's filters kept. ``private_writes`` are kept private
    whatever the inputs. ``accounted`` names the input that the stage protects with an accounted mechanism: its part in
    the other outputs is ``dp``.

    ``base``: the model that the stage trains or merges into, as a field of the spec that names a public one
    (``sanitize.model``) or as the kind of an artifact in ``reads``. ``needs``: fields of the spec, else optional, that
    the stage can't do without.
    """

    name: str
    queue: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    private_writes: frozenset[str] = field(default_factory=frozenset)
    accounted: str | None = None
    base: str | None = None
    needs: tuple[str, ...] = ()

    def label(self, kind: str, inputs: Mapping[str, Label]) -> Label:
        """Label of the output ``kind``. ``inputs``: the label of each kind in ``reads``."""
        return Label.PRIVATE if kind in self.private_writes else self.result_label(inputs)

    def result_label(self, inputs: Mapping[str, Label]) -> Label:
        """Label of what the stage found: of the outputs that are not private by themselves, and of its metrics.

        The accounted mechanism covers one input. What is private about another, as a model that was trained without
        privacy, stays private.
        """
        return most_restrictive(
            [Label.DP if kind == self.accounted and label is Label.PRIVATE else label for kind, label in inputs.items()]
        )


QUEUES: Final = ("trainer", "synth", "sandbox", "validator", "evaluator")

Schedule = Literal["exponential", "constant", "off"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """``schedule``: how PrivSA's weight falls; None where nothing is trained with privacy. ``limits_rows``: whether
    ``rows_of_job`` may limit the private rows."""

    purpose: str
    stages: tuple[StageDef, ...]
    schedule: Schedule | None
    limits_rows: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """Optional fields of the spec that this recipe can't do without."""
        return frozenset(name for stage in self.stages for name in stage.needs)

    @property
    def may_have(self) -> frozenset[str]:
        """Optional fields of the spec that a job of this recipe may have or leave out."""
        found = {"warm_up"} if any(stage.base == SANITIZE_MODEL for stage in self.stages) else set()
        return frozenset(found | {"rows_of_job"} if self.limits_rows else found)

    @property
    def trains_premium_privately(self) -> bool:
        """The accounted stage trains the premium model itself, and there is no junior."""
        return any(stage.accounted and "premium_adapter" in stage.writes for stage in self.stages)


SANITIZE_MODEL: Final = "sanitize.model"
BOOST_MODEL: Final = "boost.model"


def _sanitize(*, adapter: str, base: str = SANITIZE_MODEL) -> StageDef:
    return StageDef(
        name="sanitize",
        queue="trainer",
        reads=("dataset",) if base == SANITIZE_MODEL else ("dataset", base),
        writes=(adapter, "privacy_receipt", "training_metrics"),
        private_writes=frozenset({"training_metrics"}),
        accounted="dataset",
        base=base,
        needs=("privacy", "sanitize"),
    )


def _finetune(name: str, *, data: str, adapter: str, base: str = BOOST_MODEL) -> StageDef:
    return StageDef(name=name, queue="trainer", reads=(data,), writes=(adapter,), base=base, needs=("boost",))


def _merge(name: str, *, adapter: str, model: str, base: str) -> StageDef:
    reads = (adapter,) if base in (SANITIZE_MODEL, BOOST_MODEL) else (adapter, base)
    return StageDef(name=name, queue="trainer", reads=reads, writes=(model,), base=base)


def _merge_premium(*, base: str) -> StageDef:
    return _merge("merge_premium", adapter="premium_adapter", model="premium_model", base=base)


def _ending(*, audited: tuple[str, ...] = (), reported: tuple[str, ...] = ()) -> tuple[StageDef, ...]:
    """How every recipe ends. ``audited``: what else may have leaked; ``reported``: what else the report tells of."""
    return (
        StageDef(
            name="evaluate", queue="evaluator", reads=("premium_model",), writes=("evaluation", "evaluation_samples")
        ),
        StageDef(name="audit", queue="evaluator", reads=(*audited, "premium_model"), writes=("canary_audit",)),
        StageDef(
            name="report",
            queue="evaluator",
            reads=(*reported, "evaluation", "canary_audit"),
            writes=("report_json", "report_html"),
        ),
    )


_JUNIOR: Final = (
    _sanitize(adapter="junior_adapter"),
    _merge("merge_junior", adapter="junior_adapter", model="junior_model", base=SANITIZE_MODEL),
    StageDef(
        name="synthesize",
        queue="synth",
        reads=("junior_model", "prompts"),
        writes=("candidates",),
        needs=("prompts", "synthesize"),
    ),
)
_FILTERS: Final = (
    StageDef(name="execute", queue="sandbox", reads=("candidates",), writes=("executed",)),
    StageDef(
        name="round_trip",
        queue="validator",
        reads=("executed",),
        writes=("scored", "synthetic"),
        needs=("round_trip",),
    ),
)
_COLLECT: Final = StageDef(name="collect", queue="validator", reads=("candidates",), writes=("synthetic",))
_PREMIUM: Final = (
    _finetune("boost", data="synthetic", adapter="premium_adapter"),
    _merge_premium(base=BOOST_MODEL),
)
_RELEASED: Final = ("junior_model", "synthetic")

PRIVCODE: Final = (
    *_JUNIOR,
    *_FILTERS,
    *_PREMIUM,
    *_ending(audited=_RELEASED, reported=("privacy_receipt", "candidates", "executed", "scored")),
)
_NO_FILTERS: Final = (
    *_JUNIOR,
    _COLLECT,
    *_PREMIUM,
    *_ending(audited=_RELEASED, reported=("privacy_receipt", "candidates", "synthetic")),
)
_DIRECT: Final = (
    _sanitize(adapter="premium_adapter"),
    _merge_premium(base=SANITIZE_MODEL),
    *_ending(reported=("privacy_receipt",)),
)
_WITHOUT_PRIVACY: Final = (
    _finetune("finetune", data="dataset", adapter="premium_adapter"),
    _merge_premium(base=BOOST_MODEL),
    *_ending(),
)
# Just Fine-tune Twice: both trainings are of one model, which sanitize.model and boost.model name alike.
_MASKED_FIRST: Final = (
    StageDef(name="mask", queue="trainer", reads=("dataset",), writes=("masked",)),
    _finetune("tune_masked", data="masked", adapter="masked_adapter", base=SANITIZE_MODEL),
    _merge("merge_masked", adapter="masked_adapter", model="masked_model", base=SANITIZE_MODEL),
    _sanitize(adapter="premium_adapter", base="masked_model"),
    _merge_premium(base="masked_model"),
    *_ending(reported=("privacy_receipt",)),
)

# Before a recipe with a sanitize stage, where the spec asks for it.
_WARM_UP: Final = (
    StageDef(
        name="warm_up",
        queue="trainer",
        reads=("warm_up_pairs",),
        writes=("warm_adapter",),
        base=SANITIZE_MODEL,
        needs=("warm_up",),
    ),
    _merge("merge_warm_up", adapter="warm_adapter", model="warm_model", base=SANITIZE_MODEL),
)

RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        "privcode": Recipe(
            purpose="the whole method: a private junior, filtered synthetic code, a premium model trained on it",
            stages=PRIVCODE,
            schedule="exponential",
        ),
        "noast": Recipe(purpose="privcode without PrivSA", stages=PRIVCODE, schedule="off"),
        "stable_lambda": Recipe(purpose="privcode with a constant PrivSA weight", stages=PRIVCODE, schedule="constant"),
        "noevol": Recipe(
            purpose="one stage only: DP with PrivSA straight on the premium model",
            stages=_DIRECT,
            schedule="exponential",
        ),
        "nopostprocess": Recipe(
            purpose="privcode without filters: every candidate with a code block is kept",
            stages=_NO_FILTERS,
            schedule="exponential",
        ),
        "dpft": Recipe(
            purpose="DP-SGD straight on the premium model, without PrivSA",
            stages=_DIRECT,
            schedule="off",
            limits_rows=True,
        ),
        "nondpft": Recipe(
            purpose="no privacy: the premium model fine-tuned on the private data; the upper bound",
            stages=_WITHOUT_PRIVACY,
            schedule=None,
            limits_rows=True,
        ),
        "jft": Recipe(
            purpose="fine-tuned without privacy on masked data, then with DP on the original data",
            stages=_MASKED_FIRST,
            schedule="off",
        ),
    }
)


def stages_of(spec: JobSpec) -> tuple[StageDef, ...]:
    """The stages of a job, in order: its recipe's, and what the spec adds to them."""
    stages = RECIPES[spec.recipe].stages
    if spec.warm_up is not None:
        stages = (*_WARM_UP, *map(_on_warm_model, stages))
    if spec.rows_of_job is not None:
        stages = tuple(_reading(stage, "kept_pairs") if "dataset" in stage.reads else stage for stage in stages)
    return stages


def stage_def(spec: JobSpec, name: str) -> StageDef:
    return next(stage for stage in stages_of(spec) if stage.name == name)


def _on_warm_model(stage: StageDef) -> StageDef:
    return replace(_reading(stage, "warm_model"), base="warm_model") if stage.base == SANITIZE_MODEL else stage


def _reading(stage: StageDef, kind: str) -> StageDef:
    return replace(stage, reads=(*stage.reads, kind))


def labels_of(stages: tuple[StageDef, ...]) -> dict[str, Label]:
    """The label of every artifact of a job: its data set is private, prompts and warm-up data are public, and what
    another job's filters kept is dp."""
    labels = {
        "dataset": Label.PRIVATE,
        "prompts": Label.PUBLIC,
        "warm_up_pairs": Label.PUBLIC,
        "kept_pairs": Label.DP,
    }
    for stage in stages:
        inputs = {kind: labels[kind] for kind in stage.reads}
        labels |= {kind: stage.label(kind, inputs) for kind in stage.writes}
    return labels
