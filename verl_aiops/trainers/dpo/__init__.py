"""Preference optimisation as a trainer of verl, on files of pairs and on pairs made on line."""
