"""The synth worker: ``celery -A services.synth.tasks worker -Q synth --pool solo``."""

from privcode.worker import make_worker

app = make_worker("synth")
