"""Text generation with vLLM, for servers. It is imported when a generator is made: it is heavy, and not everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm.generator import Completion, SamplingParams
from lm.prompting import prompt_ids
from privcode.errors import StageFailed


class VllmGenerator:
    """A :class:`lm.generator.Generator`. ``batch_size``: completions that vLLM keeps in flight.

    Raises :class:`StageFailed` (``engine_unavailable``) where vLLM can't be imported.
    """

    def __init__(self, path_or_id: str | Path, *, batch_size: int) -> None:
        try:
            import vllm
        except ImportError as error:
            raise StageFailed("engine 'vllm' is not installed on this worker", code="engine_unavailable") from error
        self._vllm: Any = vllm
        self._llm = vllm.LLM(model=str(path_or_id), max_num_seqs=batch_size, enable_prefix_caching=True)
        self._tokenizer = self._llm.get_tokenizer()
        self._context: int = self._llm.llm_engine.model_config.max_model_len

    def generate(
        self,
        prompts: Sequence[str],
        *,
        params: SamplingParams,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """See :class:`lm.generator.Generator`. Raises :class:`StageFailed` (``prompt_too_long``) before anything is
        generated if a prompt and ``max_new_tokens`` together exceed the model's context."""
        encoded = prompt_ids(
            prompts, tokenizer=self._tokenizer, context=self._context, max_new_tokens=params.max_new_tokens
        )
        sampling = self._vllm.SamplingParams(
            n=params.n,
            temperature=params.temperature,
            max_tokens=params.max_new_tokens,
            stop=list(params.stop),
            seed=None if params.temperature == 0 else params.seed,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        engine = self._llm.llm_engine
        for index, ids in enumerate(encoded):
            # Ids rather than text: the prompts have their special tokens, and vLLM would add them again.
            engine.add_request(str(index), {"prompt_token_ids": ids}, sampling)
        completions: dict[int, list[Completion]] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                completions[int(output.request_id)] = [
                    Completion(text=one.text, tokens=len(one.token_ids), finish_reason=one.finish_reason)
                    for one in sorted(output.outputs, key=lambda one: one.index)
                ]
                if on_done is not None:
                    on_done(len(completions))
        return [completions[index] for index in range(len(prompts))]
