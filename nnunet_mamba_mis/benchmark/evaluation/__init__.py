"""What was trained and predicted: found, scored and compared."""
