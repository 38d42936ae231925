"""Plans for Mamba-MIS: patch and batch size by the memory that training takes."""
