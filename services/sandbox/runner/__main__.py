"""``python -m services.sandbox.runner --socket PATH [--concurrency N]``"""

from services.sandbox.runner.environment import PARENT, scrub_environment

scrub_environment()

from services.sandbox.runner.server import main  # noqa: E402

main(parent=PARENT)
