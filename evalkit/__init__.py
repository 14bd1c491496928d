"""Scores: view plans, inference, metrics, comparison, report."""
