"""How a model ranks held-out preference pairs: `verl-aiops eval-pairs`."""
