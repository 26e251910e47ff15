"""Child process of the trainer worker: ``python -m services.trainer.stage FOLDER`` runs a training, the masking before
one, or a merge."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lm.models import load_model, load_tokenizer, resolve_model
from privcode.accounting import epsilon_pld, epsilon_rdp, signal_to_noise
from privcode.canaries import plant
from privcode.errors import StageFailed
from privcode.models import model_info
from privcode.results import JsonObject, PrivacyReceipt, SamplerEvidence, SyntheticPair
from privcode.rows import rows_of_kept_pairs
from privcode.specs import BoostSpec, FinetuneSpec, PrivacySpec, SanitizeSpec, WarmUpSpec
from privcode.stage_io import Stage, run_child
from privcode.units import group_into_units, unit_words
from services.trainer.core.checkpoint import CheckpointFile, StepCounter, TrainingLog
from services.trainer.core.distributed import Group
from services.trainer.core.dp_sgd import StepMetrics, train
from services.trainer.core.engines import make_engine
from services.trainer.core.finetune import finetune
from services.trainer.core.loading import checkpoint_gradients, load_base
from services.trainer.core.lora import add_adapter, save_adapter
from services.trainer.core.masking import PiiMasker
from services.trainer.core.memory import available_memory, estimate, require_memory
from services.trainer.core.merge import merge
from services.trainer.core.noise import secret_gaussian
from services.trainer.core.privsa import require_plain_head
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.sampler_check import check_sampler
from services.trainer.core.sequences import TokenSequence, make_sequence
from services.trainer.core.teacher import CachedTeacher, InlineTeacher, Teacher
from services.trainer.ranks import joined, rank_folder

# A and the dropout masks are public randomness: nothing of the guarantee rests on them.
_ADAPTER_SEED = 0


def run_sanitize(stage: Stage) -> None:
    """Private rows -> DP adapter and receipt, and a private training log. Progress counts steps.

    Runs in each rank; rank 0 alone counts, reports and writes.
    """
    with joined(stage.folder, processes=stage.spec.runtime.processes, environment=os.environ) as group:
        _sanitize(stage, group)


def _sanitize(stage: Stage, group: Group) -> None:
    spec, plan, runtime = stage.spec.section(SanitizeSpec), stage.plan, stage.spec.runtime
    torch.set_num_threads(max(1, stage.environment.threads // runtime.processes))
    if group.rank == 0:
        stage.progress(0, plan.steps)
    _require_memory(stage, spec, group=group)
    own = _private_rows(stage)
    rows = _with_canaries(stage, own)
    units = group_into_units(rows, max_records_per_unit=plan.max_records_per_unit)
    if (len(rows), len(units)) != (plan.records, plan.units):
        raise StageFailed(
            f"{len(rows)} records in {len(units)} units, the plan has {plan.records} in {plan.units}",
            code="records_changed",
        )
    sampler = PoissonSampler(units=plan.units, sample_rate=plan.sample_rate, seed=_data_seed(stage))
    evidence = check_sampler(sampler, units=plan.units, sample_rate=plan.sample_rate, first_step=plan.steps)
    path = _base_path(stage)
    tokenizer = load_tokenizer(path)
    sequences = [_sequences(stage, unit, tokenizer=tokenizer, seq_length=spec.seq_length) for unit in units]
    model = add_adapter(load_base(path, dtype=runtime.base_dtype), spec.lora, seed=_ADAPTER_SEED)
    require_plain_head(model)
    if runtime.gradient_checkpointing:
        checkpoint_gradients(model)
    engine = make_engine(runtime.per_example_engine, model)
    counter = StepCounter(stage.keep_dir, limit=stage.task.reserved_steps)
    log = TrainingLog(stage.keep_dir / "training_metrics.jsonl")

    def on_step(metrics: StepMetrics) -> None:
        log.append(metrics.as_row())
        stage.progress(metrics.step, plan.steps)

    train(
        model,
        sequences,
        plan=plan,
        spec=spec,
        engine=engine,
        sampler=sampler,
        noise=secret_gaussian,
        counter=counter,
        checkpoints=CheckpointFile(stage.keep_dir, run=_run_identity(stage)),
        checkpoint_every=runtime.checkpoint_every,
        micro_batch=runtime.micro_batch,
        on_step=on_step,
        teacher=_teacher(stage, model, sequences, rank=group.rank),
        group=group,
    )
    if group.rank > 0:
        return
    parameters = sum(parameter.numel() for parameter in engine.parameters)
    receipt = _receipt(
        stage, steps_taken=counter.taken, canaries=len(rows) - len(own), parameters=parameters, sampler=evidence
    )
    save_adapter(model, stage.output(stage.definition.writes[0]), base=_base_name(stage))
    stage.write_model("privacy_receipt", receipt)
    stage.write_rows("training_metrics", log.rows())
    stage.metric("steps_taken", receipt.steps_taken)
    stage.metric("trainable_parameters", receipt.trainable_parameters)
    stage.metric("epsilon_spent", receipt.epsilon_spent)
    stage.metric("noise_multiplier", plan.noise_multiplier)


def run_boost(stage: Stage) -> None:
    """Synthetic pairs -> adapter of the premium model. Progress counts steps."""
    pairs = stage.read_models("synthetic", SyntheticPair)
    if not pairs:
        raise StageFailed("the filters kept no synthetic pair: there is nothing to train on", code="no_synthetic_data")
    _finetune(stage, [pair.model_dump() for pair in pairs], spec=stage.spec.section(BoostSpec))


def run_finetune(stage: Stage) -> None:
    """Private rows -> adapter of the premium model, without any privacy."""
    _finetune(stage, _with_canaries(stage, _private_rows(stage)), spec=stage.spec.section(BoostSpec))


def run_tune_masked(stage: Stage) -> None:
    """Masked private rows -> adapter, without a guarantee: masking finds what it knows."""
    _finetune(stage, list(stage.read_rows("masked")), spec=stage.spec.section(BoostSpec))


def run_warm_up(stage: Stage) -> None:
    """Public rows -> adapter of the model that sanitize goes on from."""
    _finetune(stage, list(stage.read_rows("warm_up_pairs")), spec=stage.spec.section(WarmUpSpec))


def run_mask(stage: Stage) -> None:
    """Private rows -> the same rows with personal data in their solutions masked. Progress counts rows."""
    rows = _with_canaries(stage, _private_rows(stage))
    stage.progress(0, len(rows))
    masker = PiiMasker()
    masked = [{**row, "solution": masker.mask(row["solution"], lang=row["lang"]).text} for row in rows]
    stage.write_rows("masked", masked)
    stage.progress(len(rows), len(rows))


def _finetune(stage: Stage, rows: Sequence[JsonObject], *, spec: FinetuneSpec) -> None:
    """Ordinary LoRA fine-tuning of the stage's base on ``rows``; writes the stage's adapter. Progress counts steps."""
    torch.set_num_threads(stage.environment.threads)
    stage.progress(0, spec.steps)
    path = _base_path(stage)
    sequences = _sequences(stage, rows, tokenizer=load_tokenizer(path), seq_length=spec.seq_length)
    model = add_adapter(load_model(path), spec.lora, seed=spec.seed)
    require_plain_head(model)
    finetune(
        model,
        sequences,
        spec=spec,
        micro_batch=stage.spec.runtime.micro_batch,
        on_step=lambda done: stage.progress(done, spec.steps),
    )
    (adapter,) = stage.definition.writes
    save_adapter(model, stage.output(adapter), base=_base_name(stage))
    stage.metric("examples", len(rows))
    stage.metric("steps", spec.steps)


def run_merge(stage: Stage) -> None:
    """An adapter and its base -> one model: the stage's first input and its only output."""
    torch.set_num_threads(stage.environment.threads)
    stage.progress(0, 1)
    (model,) = stage.definition.writes
    merge(_base_path(stage), stage.input(stage.definition.reads[0]), into=stage.output(model))
    stage.progress(1, 1)


def _teacher(stage: Stage, model: PeftModel, units: Sequence[Sequence[TokenSequence]], *, rank: int) -> Teacher:
    """PrivSA's base model: asked at each step, or its answers kept in the attempt's private folder."""
    inline = InlineTeacher(model)
    if stage.spec.runtime.teacher == "inline":
        return inline
    return CachedTeacher(
        inline,
        sequences=[sequence for unit in units for sequence in unit],
        width=model.get_base_model().config.hidden_size,
        file=stage.folder / f"teacher-{rank}",
    )


def _base_path(stage: Stage) -> str:
    """Folder or hub id of the model that the stage starts from: an earlier stage's, or the public one of the spec."""
    base = stage.definition.base
    if base is None:
        raise LookupError(f"stage {stage.task.stage} starts from no model")
    reference = stage.spec.models.get(base)
    if reference is None:
        return str(stage.input(base))
    return resolve_model(reference, models_dir=Path(stage.environment.models_dir))


def _base_name(stage: Stage) -> str:
    """What an adapter's folder says of its base: a public model's reference, or the kind of an earlier artifact."""
    base = stage.definition.base or ""
    return stage.spec.models.get(base, base)


def _private_rows(stage: Stage) -> list[JsonObject]:
    rows = stage.read_rows("dataset")
    return rows_of_kept_pairs(rows, stage.read_rows("kept_pairs")) if stage.has_input("kept_pairs") else list(rows)


def _with_canaries(stage: Stage, rows: Sequence[JsonObject]) -> list[JsonObject]:
    return plant(rows, rate=stage.spec.audit.canary_rate, seed=stage.spec.audit.seed)


def _data_seed(stage: Stage) -> int | None:
    return stage.spec.section(PrivacySpec).data_seed


def _sequences(
    stage: Stage, rows: Iterable[Mapping[str, str]], *, tokenizer: PreTrainedTokenizerBase, seq_length: int
) -> list[TokenSequence]:
    template = stage.spec.prompt_template
    return [make_sequence(row, template=template, tokenizer=tokenizer, seq_length=seq_length) for row in rows]


def _require_memory(stage: Stage, spec: SanitizeSpec, *, group: Group) -> None:
    """Refuse before anything is loaded; no rank begins to load before all have looked.

    By the length that sequences may have, not by theirs: what a refusal says must not depend on private rows.
    """
    runtime = stage.spec.runtime
    shape = model_info(spec.model, models_dir=Path(stage.environment.models_dir)).shape
    if shape is not None:
        needed = estimate(shape, spec.lora, runtime=runtime, seq_length=spec.seq_length)
        sharing = 1 if torch.cuda.is_available() else runtime.processes
        require_memory(needed, available=available_memory(), processes=sharing)
    group.broadcast_object(None)


def _run_identity(stage: Stage) -> str:
    """A digest of all that a checkpoint depends on; RuntimeSpec may differ from one attempt to the next."""
    spec = stage.spec
    parts = (stage.plan, spec.section(PrivacySpec), spec.section(SanitizeSpec), spec.audit)
    # An artifact's folder is named by its content: on another base it is another run.
    bases = [stage.input(kind).name for kind in stage.definition.reads if kind == stage.definition.base]
    text = "\n".join((spec.prompt_template, *bases, *(part.model_dump_json() for part in parts)))
    return hashlib.sha256(text.encode()).hexdigest()


def _receipt(
    stage: Stage, *, steps_taken: int, canaries: int, parameters: int, sampler: SamplerEvidence
) -> PrivacyReceipt:
    plan = stage.plan
    taken = plan.mechanism.model_copy(update={"steps": steps_taken})
    return PrivacyReceipt(
        plan=plan,
        unit=unit_words(unit=plan.unit, max_records_per_unit=plan.max_records_per_unit),
        steps_taken=steps_taken,
        epsilon_spent=epsilon_pld([taken], target_delta=plan.target_delta),
        epsilon_rdp=epsilon_rdp([taken], target_delta=plan.target_delta),
        canaries=canaries,
        sampling_seed="secret" if _data_seed(stage) is None else "given",
        sampler=sampler,
        trainable_parameters=parameters,
        signal_to_noise=signal_to_noise(
            expected_batch=plan.expected_batch,
            noise_multiplier=plan.noise_multiplier,
            trainable_parameters=parameters,
        ),
    )


if __name__ == "__main__":
    sys.argv[1] = str(rank_folder(Path(sys.argv[1]), environment=os.environ))
    run_child(
        {
            "warm_up": run_warm_up,
            "merge_warm_up": run_merge,
            "mask": run_mask,
            "tune_masked": run_tune_masked,
            "merge_masked": run_merge,
            "sanitize": run_sanitize,
            "merge_junior": run_merge,
            "boost": run_boost,
            "finetune": run_finetune,
            "merge_premium": run_merge,
        }
    )
