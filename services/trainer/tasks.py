"""The trainer worker: ``celery -A services.trainer.tasks worker -Q trainer --pool solo``."""

from privcode.worker import make_worker

app = make_worker("trainer")
