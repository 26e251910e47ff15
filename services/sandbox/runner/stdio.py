"""The runner over its own standard streams: for a container, whose only connection they are.

The first line out is what /healthz would answer; from then on each line in is an :class:`ExecutionBatch`, and each
line out an :class:`ExecutionResult`, in the order in which they end.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from privcode.sandbox import Execution, ExecutionBatch, Sandbox
from privcode.specs import ExecutionLimits


def serve_stdio(*, sandbox: Sandbox, pool: ThreadPoolExecutor, health: Mapping[str, str | int | bool]) -> None:
    """Until standard input ends; then what runs is killed."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else is to write between the answers
    answers = _Answers(sink)
    answers.write(json.dumps(dict(health)))

    def answer(execution: Execution, limits: ExecutionLimits) -> None:
        answers.write(sandbox.run(execution, limits=limits).model_dump_json())

    try:
        for line in source:
            batch = ExecutionBatch.model_validate_json(line)
            for execution in batch.executions:
                pool.submit(answer, execution, batch.limits)
    finally:
        sandbox.close()


class _Answers:
    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        with self._lock:
            self._sink.write(line.encode() + b"\n")
            self._sink.flush()
