"""What a reward model is worth on held-out answers: how it ranks them, whether it knows, and what its choice brings."""
