"""The datasets: every module of this package is loaded and lists its datasets in DATASETS."""
