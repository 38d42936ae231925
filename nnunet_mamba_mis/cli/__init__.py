"""The command `mamba_mis`: one module per subcommand, which parses arguments and prints results."""
