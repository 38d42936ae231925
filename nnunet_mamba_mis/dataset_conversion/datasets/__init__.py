"""The datasets: each module here says in DATASETS what it knows, and is found by being here."""
