"""What the user asked for: frozen request models, validated once at the edge.

Values that are out of range are refused, never clamped. :class:`PrivacySpec` holds what the guarantee depends on;
:class:`RuntimeSpec` only what changes speed. One field name per quantity, the same in JSON, database, code,
artifact and report.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from privcode.recipes import RECIPES, Schedule

RecipeName = Literal["privcode", "noast", "stable_lambda", "noevol", "nopostprocess", "dpft", "nondpft", "jft"]
PromptTemplate = Literal["qa", "chat"]
LoraModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Clipping = Literal["flat", "automatic"]
Unit = Literal["record", "unit_id"]
PerExampleEngineName = Literal["native", "opacus_hooks", "opacus_ghost", "fastdp"]

PositiveInt = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PrivacySpec(Spec):
    """Everything the (epsilon, delta) guarantee of the sanitize stage depends on.

    The unit is the record, or all records with one ``unit_id`` where the dataset has that column; adjacency is
    add-or-remove-one unit, sampling is Poisson with ``sample_rate = expected_batch / units``; ``noise_multiplier`` is
    calibrated, never asked for.

    ``clipping``: ``flat`` scales a unit's whole gradient g by min(1, C / |g|), ``automatic`` by C / (|g| + 0.01)
    (Bu et al. 2023, arXiv 2206.07136), with C = ``max_grad_norm``. ``max_records_per_unit``: at most so many of a
    unit's records are used, chosen before training.
    """

    target_epsilon: PositiveFloat
    target_delta: Probability
    max_grad_norm: PositiveFloat = 1.0
    clipping: Clipping = "flat"
    max_records_per_unit: PositiveInt = 8
    expected_batch: PositiveInt
    steps: PositiveInt
    data_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        default=None,
        description="Seed of the Poisson sampler. Leave it out: sampling amplifies privacy only against those who "
        "don't know which records were drawn. For reproducing batches in tests.",
    )


class LoraSpec(Spec):
    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[tuple[LoraModule, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _unique_modules(self) -> LoraSpec:
        if len(set(self.target_modules)) != len(self.target_modules):
            raise ValueError(f"names a module twice: {', '.join(self.target_modules)}")
        return self


class PrivSASpec(Spec):
    """lambda(t) = lambda_min + (lambda_max - lambda_min) * exp(-alpha * floor(t / 20) * 20),
    t = optimizer step * nominal_accumulation, where ``schedule`` is ``exponential``. The paper's ablations:
    ``constant`` keeps lambda at ``lambda_max``, ``off`` leaves the term out."""

    schedule: Schedule = "exponential"
    lambda_max: Annotated[float, Field(ge=0)] = 1000.0
    lambda_min: Annotated[float, Field(ge=0)] = 0.1
    alpha: Annotated[float, Field(ge=0)] = 0.01
    nominal_accumulation: PositiveInt = 16

    @model_validator(mode="after")
    def _ordered(self) -> PrivSASpec:
        if self.lambda_min > self.lambda_max:
            raise ValueError(f"lambda_min {self.lambda_min} is above lambda_max {self.lambda_max}")
        return self


class SanitizeSpec(Spec):
    """Stage 1: DP-SGD on the junior's LoRA adapter."""

    model: str
    lora: LoraSpec
    privsa: PrivSASpec = PrivSASpec()
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    seq_length: Annotated[int, Field(ge=16)]


class SynthesizeSpec(Spec):
    """Stage 3: the junior answers public prompts. ``temperature`` 0 is greedy."""

    prompt_source: Literal["public"] = "public"
    max_prompts: PositiveInt | None = None
    samples_per_prompt: PositiveInt = 1
    max_new_tokens: PositiveInt = 2048
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _samples_differ(self) -> SynthesizeSpec:
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(f"samples_per_prompt {self.samples_per_prompt} at temperature 0 would all be the same")
        return self


class ExecutionLimits(Spec):
    """Limits of one execution. Time in seconds of wall clock, memory in MiB, output in KiB per stream.

    ``compile_*``: of the compiler, where there is one. ``check_types``: a type error in TypeScript is a failure.
    """

    time_limit_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    memory_mib: Annotated[int, Field(ge=16, le=65536)] = 512
    compile_limit_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    compile_memory_mib: Annotated[int, Field(ge=16, le=65536)] = 2048
    check_types: bool = False
    processes: Annotated[int, Field(ge=1, le=1024)] = 32
    file_size_mib: Annotated[int, Field(ge=1, le=4096)] = 16
    output_kib: Annotated[int, Field(ge=1, le=16384)] = 64


class RoundTripSpec(Spec):
    """Stage 5: an instruct model describes the code; BERTScore F1 of description against prompt must reach tau."""

    describer: str
    scorer: str
    samples: PositiveInt = 20
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    max_new_tokens: PositiveInt = 200
    tau: Annotated[float, Field(ge=-1, le=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _samples_differ(self) -> RoundTripSpec:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"samples {self.samples} at temperature 0 would all be the same")
        return self


class FinetuneSpec(Spec):
    """Ordinary LoRA fine-tuning."""

    lora: LoraSpec
    steps: PositiveInt
    batch: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    seq_length: Annotated[int, Field(ge=16)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class WarmUpSpec(FinetuneSpec):
    """Before stage 1: sanitize's model learns the form of the task from the PUBLIC pairs ``dataset``, so that no budget
    is spent on it. The result is the base of sanitize, and PrivSA's p_base."""

    dataset: str


class BoostSpec(FinetuneSpec):
    """Stage 6: the premium model learns the filtered synthetic data. In ``nondpft`` it learns the private data, in
    ``jft`` first the masked data."""

    model: str


class EvaluateSpec(Spec):
    """Stage 8: greedy pass@1 of the base and the tuned premium model. ``limit``: the first tasks only."""

    benchmarks: Annotated[tuple[Literal["humaneval"], ...], Field(min_length=1)] = ("humaneval",)
    limit: PositiveInt | None = None
    max_new_tokens: PositiveInt = 512


class AuditSpec(Spec):
    """Stage 9: the paper's five canaries, each planted ``canary_rate`` times (0: no canary, the audit says so)."""

    canary_rate: Annotated[int, Field(ge=0, le=1000)] = 0
    prompts: PositiveInt = 128
    samples_per_prompt: PositiveInt = 10
    temperature: Annotated[float, Field(gt=0, le=2)] = 0.8
    max_new_tokens: PositiveInt = 128
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class RuntimeSpec(Spec):
    """What only changes speed and memory. No value here may change a guarantee or a receipt.

    ``micro_batch``: rows at a time; where memory runs out it is halved. ``teacher``: whether PrivSA's base model is
    asked at each step, or its hidden states are kept on disk once computed. ``processes``: data-parallel ranks on this
    machine. ``base_dtype``: in which type the frozen base model is held; the adapter is always float32.
    """

    micro_batch: PositiveInt = 4
    per_example_engine: PerExampleEngineName = "native"
    gradient_checkpointing: bool = False
    base_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    teacher: Literal["inline", "cached"] = "inline"
    generate_batch: PositiveInt = 32
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    checkpoint_every: PositiveInt = 10


Section = TypeVar("Section", bound=Spec)


class JobSpec(Spec):
    """A job, complete: what a preset leaves open the request has filled in.

    Fields that may be None are there exactly if a stage of the recipe needs them (:data:`privcode.recipes.RECIPES`);
    ``warm_up`` and ``rows_of_job`` may be left out. ``rows_of_job``: train only on those rows of ``dataset`` whose
    problem is that of a pair which that job's filters kept.
    """

    model_config = ConfigDict(validate_default=True)

    recipe: RecipeName
    dataset: str
    prompts: str | None = None
    rows_of_job: str | None = None
    prompt_template: PromptTemplate
    privacy: PrivacySpec | None = None
    warm_up: WarmUpSpec | None = None
    sanitize: SanitizeSpec | None = None
    synthesize: SynthesizeSpec | None = None
    execute: ExecutionLimits = ExecutionLimits()
    round_trip: RoundTripSpec | None = None
    boost: BoostSpec | None = None
    evaluate: EvaluateSpec
    audit: AuditSpec = AuditSpec()
    runtime: RuntimeSpec = RuntimeSpec()

    @field_validator(
        "prompts", "rows_of_job", "privacy", "warm_up", "sanitize", "synthesize", "round_trip", "boost", mode="after"
    )
    @classmethod
    def _as_the_recipe_needs(cls, value: object, info: ValidationInfo) -> object:
        recipe, name = info.data.get("recipe"), info.field_name
        if recipe is None:  # refused already
            return value
        needs, may_have = RECIPES[recipe].needs, RECIPES[recipe].may_have
        if value is None and name in needs:
            raise PydanticKnownError("missing")
        if value is not None and name not in needs | may_have:
            if name == "privacy":
                raise PydanticCustomError(
                    "privacy_without_mechanism",
                    "recipe {recipe} has no privacy mechanism: it can keep no target",
                    {"recipe": recipe},
                )
            raise PydanticCustomError("unused_section", "recipe {recipe} does not use it", {"recipe": recipe})
        return value

    def section(self, kind: type[Section]) -> Section:
        """The section of this type, for code that runs only where the recipe has it; else raises ``LookupError``."""
        sections = (self.privacy, self.warm_up, self.sanitize, self.synthesize, self.round_trip, self.boost)
        for section in sections:
            if isinstance(section, kind):
                return section
        raise LookupError(f"recipe {self.recipe} has no {kind.__name__}")

    @property
    def models(self) -> dict[str, str]:
        """Spec field -> model reference, of each model the job needs."""
        found = {}
        if self.sanitize is not None:
            found["sanitize.model"] = self.sanitize.model
        if self.round_trip is not None:
            found["round_trip.describer"] = self.round_trip.describer
            found["round_trip.scorer"] = self.round_trip.scorer
        if self.boost is not None:
            found["boost.model"] = self.boost.model
        return found

    @property
    def premium_model(self) -> str:
        """Reference of the public model that becomes the job's premium model."""
        return self.boost.model if self.boost is not None else self.section(SanitizeSpec).model
