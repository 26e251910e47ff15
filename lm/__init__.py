"""What several services do with a language model: find and load it, write its prompts, generate, score tokens."""
