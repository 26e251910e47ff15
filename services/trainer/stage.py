"""Child process of the trainer worker: ``python -m services.trainer.stage FOLDER`` runs ``sanitize``, ``boost`` or a
merge."""

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
from privcode.results import PrivacyReceipt, SamplerEvidence, SyntheticPair
from privcode.stage_io import Stage, run_child
from privcode.units import group_into_units, unit_words
from services.trainer.core.checkpoint import CheckpointFile, StepCounter, TrainingLog
from services.trainer.core.distributed import Group
from services.trainer.core.dp_sgd import StepMetrics, train
from services.trainer.core.engines import make_engine
from services.trainer.core.finetune import finetune
from services.trainer.core.loading import checkpoint_gradients, load_base
from services.trainer.core.lora import add_adapter, save_adapter
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
    spec, plan, runtime = stage.spec.sanitize, stage.task.plan, stage.spec.runtime
    torch.set_num_threads(max(1, stage.environment.threads // runtime.processes))
    if group.rank == 0:
        stage.progress(0, plan.steps)
    _require_memory(stage, group=group)
    own = list(stage.read_rows("dataset"))
    rows = plant(own, rate=stage.spec.audit.canary_rate, seed=stage.spec.audit.seed)
    units = group_into_units(rows, max_records_per_unit=plan.max_records_per_unit)
    if (len(rows), len(units)) != (plan.records, plan.units):
        raise StageFailed(
            f"{len(rows)} records in {len(units)} units, the plan has {plan.records} in {plan.units}",
            code="records_changed",
        )
    sampler = PoissonSampler(units=plan.units, sample_rate=plan.sample_rate, seed=stage.spec.privacy.data_seed)
    evidence = check_sampler(sampler, units=plan.units, sample_rate=plan.sample_rate, first_step=plan.steps)
    path = _model_path(stage, spec.model)
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
    save_adapter(model, stage.output("junior_adapter"), base=spec.model)
    stage.write_model("privacy_receipt", receipt)
    stage.write_rows("training_metrics", log.rows())
    stage.metric("steps_taken", receipt.steps_taken)
    stage.metric("trainable_parameters", receipt.trainable_parameters)
    stage.metric("epsilon_spent", receipt.epsilon_spent)
    stage.metric("noise_multiplier", plan.noise_multiplier)


def run_boost(stage: Stage) -> None:
    """Synthetic pairs -> adapter of the premium model. Progress counts steps."""
    torch.set_num_threads(stage.environment.threads)
    spec = stage.spec.boost
    stage.progress(0, spec.steps)
    pairs = stage.read_models("synthetic", SyntheticPair)
    if not pairs:
        raise StageFailed("the filters kept no synthetic pair: there is nothing to train on", code="no_synthetic_data")
    path = _model_path(stage, spec.model)
    rows = [pair.model_dump() for pair in pairs]
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
    save_adapter(model, stage.output("premium_adapter"), base=spec.model)
    stage.metric("examples", len(pairs))
    stage.metric("steps", spec.steps)


def run_merge_junior(stage: Stage) -> None:
    """DP adapter and public base -> the junior model."""
    _merge(stage, reference=stage.spec.sanitize.model, adapter="junior_adapter", output="junior_model")


def run_merge_premium(stage: Stage) -> None:
    """Premium adapter and public base -> the premium model."""
    _merge(stage, reference=stage.spec.boost.model, adapter="premium_adapter", output="premium_model")


def _merge(stage: Stage, *, reference: str, adapter: str, output: str) -> None:
    torch.set_num_threads(stage.environment.threads)
    stage.progress(0, 1)
    merge(_model_path(stage, reference), stage.input(adapter), into=stage.output(output))
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


def _model_path(stage: Stage, reference: str) -> str:
    return resolve_model(reference, models_dir=Path(stage.environment.models_dir))


def _sequences(
    stage: Stage, rows: Iterable[Mapping[str, str]], *, tokenizer: PreTrainedTokenizerBase, seq_length: int
) -> list[TokenSequence]:
    template = stage.spec.prompt_template
    return [make_sequence(row, template=template, tokenizer=tokenizer, seq_length=seq_length) for row in rows]


def _require_memory(stage: Stage, *, group: Group) -> None:
    """Refuse before anything is loaded; no rank begins to load before all have looked.

    By the length that sequences may have, not by theirs: what a refusal says must not depend on private rows.
    """
    spec, runtime = stage.spec.sanitize, stage.spec.runtime
    shape = model_info(spec.model, models_dir=Path(stage.environment.models_dir)).shape
    if shape is not None:
        needed = estimate(shape, spec.lora, runtime=runtime, seq_length=spec.seq_length)
        sharing = 1 if torch.cuda.is_available() else runtime.processes
        require_memory(needed, available=available_memory(), processes=sharing)
    group.broadcast_object(None)


def _run_identity(stage: Stage) -> str:
    """A digest of all that a checkpoint depends on; RuntimeSpec may differ from one attempt to the next."""
    spec = stage.spec
    parts = (stage.task.plan, spec.privacy, spec.sanitize, spec.audit)
    text = "\n".join((spec.prompt_template, *(part.model_dump_json() for part in parts)))
    return hashlib.sha256(text.encode()).hexdigest()


def _receipt(
    stage: Stage, *, steps_taken: int, canaries: int, parameters: int, sampler: SamplerEvidence
) -> PrivacyReceipt:
    plan = stage.task.plan
    taken = plan.mechanism.model_copy(update={"steps": steps_taken})
    return PrivacyReceipt(
        plan=plan,
        unit=unit_words(unit=plan.unit, max_records_per_unit=plan.max_records_per_unit),
        steps_taken=steps_taken,
        epsilon_spent=epsilon_pld([taken], target_delta=plan.target_delta),
        epsilon_rdp=epsilon_rdp([taken], target_delta=plan.target_delta),
        canaries=canaries,
        sampling_seed="secret" if stage.spec.privacy.data_seed is None else "given",
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
            "sanitize": run_sanitize,
            "merge_junior": run_merge_junior,
            "boost": run_boost,
            "merge_premium": run_merge_premium,
        }
    )
