"""Find, score and compare the results of training and prediction."""
