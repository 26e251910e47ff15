"""Child process of the synth worker: ``python -m services.synth.stage FOLDER`` runs ``synthesize``."""

from __future__ import annotations

import torch

from lm.engine import engine_name, make_generator
from lm.models import load_tokenizer
from privcode.specs import SynthesizeSpec
from privcode.stage_io import Stage, run_child
from services.synth.core.synthesis import choose_prompts, synthesize


def run_synthesize(stage: Stage) -> None:
    """Junior model and public prompts -> ``candidates``. Progress counts prompts."""
    torch.set_num_threads(stage.environment.threads)
    spec, runtime = stage.spec.section(SynthesizeSpec), stage.spec.runtime
    problems = [row["problem"] for row in stage.read_rows("prompts")]
    total = len(choose_prompts(len(problems), max_prompts=spec.max_prompts, seed=spec.seed))
    stage.progress(0, total)
    junior = stage.input("junior_model")
    candidates, tokens = synthesize(
        problems,
        spec=spec,
        template=stage.spec.prompt_template,
        tokenizer=load_tokenizer(junior),
        generator=make_generator(junior, engine=runtime.engine, batch_size=runtime.generate_batch),
        on_done=lambda done: stage.progress(done, total),
    )
    stage.write_rows("candidates", candidates)
    stage.metric("candidates", len(candidates))
    stage.metric("tokens", tokens)
    stage.metric("finish_length", sum(candidate.finish_reason == "length" for candidate in candidates))
    stage.metric("engine", engine_name(runtime.engine))


if __name__ == "__main__":
    run_child({"synthesize": run_synthesize})
