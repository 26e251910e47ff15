"""The sandbox worker: ``celery -A services.sandbox.tasks worker -Q sandbox --pool solo``."""

from privcode.worker import make_worker

app = make_worker("sandbox")
