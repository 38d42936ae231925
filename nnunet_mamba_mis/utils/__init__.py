"""Small things that every package may use; imports nothing of this project."""
