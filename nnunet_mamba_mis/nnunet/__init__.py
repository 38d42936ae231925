"""This project's knowledge of nnU-Net's files, folders and commands, in one place to update when nnU-Net changes."""
