"""Small helpers that every package may use; they import nothing else of this project."""
