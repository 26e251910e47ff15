"""PrivCode: fine-tune and share code LLMs on private code with differential privacy.

This package holds the contracts and the state that every process shares: specs, results, recipes, states,
the privacy ledger, artifacts, and the queue. It never imports torch.
"""

__version__ = "0.1.0"
