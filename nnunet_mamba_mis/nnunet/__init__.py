"""What this project knows of nnU-Net's files, folders and commands: the one place that changes when nnU-Net does."""
