"""The validator worker: ``celery -A services.validator.tasks worker -Q validator --pool solo``."""

from privcode.worker import make_worker

app = make_worker("validator")
