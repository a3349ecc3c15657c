"""Reward models on the preference engine: what ``main_ppo`` runs for ``algorithm.adv_estimator=rm``."""
