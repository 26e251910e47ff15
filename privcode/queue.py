"""Celery: queue names and the one message there is, "stage S may have work".

The database owns all state. A message may be lost or come twice, and nothing is lost or done twice:
``privcode.reconcile`` sends again what is waiting, and ``privcode.jobs.lease_stage`` gives a stage to one worker only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from celery import Celery

RUN_STAGE: Final = "privcode.run_stage"


@dataclass(frozen=True)
class Wake:
    """A stage that may have work, and the queue whose workers can do it."""

    stage_id: str
    queue: str


def make_celery(broker_url: str) -> Celery:
    app = Celery("privcode", broker=broker_url)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=True,
        task_store_errors_even_if_ignored=False,
    )
    return app


def enqueue(app: Celery, wake: Wake) -> None:
    app.send_task(RUN_STAGE, args=[wake.stage_id], queue=wake.queue)
