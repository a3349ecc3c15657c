"""The reference's log-probs: computed once and kept."""
