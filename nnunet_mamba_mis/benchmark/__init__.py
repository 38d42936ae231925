"""Trainers compared by cross-validation: training the grid, scores, statistics and the report."""
