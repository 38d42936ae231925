"""Compare trainers by cross-validation, with nnU-Net's own commands."""

# subcommand → module with add_arguments(parser) and run(args); modules must be cheap to import
COMMANDS = {
    "run": ("nnunet_mamba_mis.cli.benchmark.run", "train and validate datasets × trainers × plans × folds × seeds"),
    "status": ("nnunet_mamba_mis.cli.benchmark.status", "show the progress of the jobs"),
    "report": ("nnunet_mamba_mis.cli.benchmark.report", "score and compare the results"),
}
