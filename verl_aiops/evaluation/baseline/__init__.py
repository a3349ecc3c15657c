"""Yardsticks without a language model, evaluated as one: `verl-aiops baseline`."""
