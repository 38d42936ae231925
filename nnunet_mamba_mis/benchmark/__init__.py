"""Compare trainers by cross-validation: train the grid, score, compute statistics and write the report."""
