"""Child process of the trainer worker: ``python -m services.trainer.stage FOLDER`` runs ``sanitize``, ``boost`` or a
merge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lm.models import load_model, load_tokenizer, resolve_model
from privcode.accounting import epsilon_pld, epsilon_rdp, signal_to_noise
from privcode.canaries import plant
from privcode.errors import StageFailed
from privcode.results import PrivacyReceipt, SamplerEvidence, SyntheticPair
from privcode.stage_io import Stage, run_child
from privcode.units import group_into_units, unit_words
from services.trainer.core.checkpoint import CheckpointFile, StepCounter
from services.trainer.core.dp_sgd import StepMetrics, train
from services.trainer.core.finetune import finetune
from services.trainer.core.lora import add_adapter, save_adapter
from services.trainer.core.merge import merge
from services.trainer.core.native_engine import NativeEngine
from services.trainer.core.noise import secret_gaussian
from services.trainer.core.privsa import require_plain_head
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.sampler_check import check_sampler
from services.trainer.core.sequences import TokenSequence, make_sequence

# A and the dropout masks are public randomness: nothing of the guarantee rests on them.
_ADAPTER_SEED = 0


def run_sanitize(stage: Stage) -> None:
    """Private rows -> DP adapter and receipt, and a private training log. Progress counts steps."""
    torch.set_num_threads(stage.environment.threads)
    spec, plan = stage.spec.sanitize, stage.task.plan
    stage.progress(0, plan.steps)
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
    model = add_adapter(load_model(path), spec.lora, seed=_ADAPTER_SEED)
    require_plain_head(model)
    engine, counter = NativeEngine(model), StepCounter(stage.keep_dir)
    log = stage.keep_dir / "training_metrics.jsonl"

    def on_step(metrics: StepMetrics) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics.as_row()) + "\n")
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
        checkpoint_every=stage.spec.runtime.checkpoint_every,
        micro_batch=stage.spec.runtime.micro_batch,
        on_step=on_step,
    )
    parameters = sum(parameter.numel() for parameter in engine.parameters)
    receipt = _receipt(
        stage, steps_taken=counter.taken, canaries=len(rows) - len(own), parameters=parameters, sampler=evidence
    )
    save_adapter(model, stage.output("junior_adapter"), base=spec.model)
    stage.write_model("privacy_receipt", receipt)
    with log.open(encoding="utf-8") as lines:
        stage.write_rows("training_metrics", map(json.loads, lines))
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


def _model_path(stage: Stage, reference: str) -> str:
    return resolve_model(reference, models_dir=Path(stage.environment.models_dir))


def _sequences(
    stage: Stage, rows: Iterable[Mapping[str, str]], *, tokenizer: PreTrainedTokenizerBase, seq_length: int
) -> list[TokenSequence]:
    template = stage.spec.prompt_template
    return [make_sequence(row, template=template, tokenizer=tokenizer, seq_length=seq_length) for row in rows]


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
    run_child(
        {
            "sanitize": run_sanitize,
            "merge_junior": run_merge_junior,
            "boost": run_boost,
            "merge_premium": run_merge_premium,
        }
    )
