"""The rollout named ``hf``: generation and scoring by transformers."""
