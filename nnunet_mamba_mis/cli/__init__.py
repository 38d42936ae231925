"""The command `mamba_mis`: a module for each subcommand, which parses and prints."""
