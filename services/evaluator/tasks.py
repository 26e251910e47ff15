"""The evaluator worker: ``celery -A services.evaluator.tasks worker -Q evaluator --pool solo``."""

from privcode.worker import make_worker

app = make_worker("evaluator")
