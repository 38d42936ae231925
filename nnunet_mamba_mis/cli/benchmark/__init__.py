"""Compare trainers by cross-validation, through nnU-Net's own commands."""

# subcommand → module with add_arguments(parser) and run(args); modules must be cheap to import
COMMANDS = {
    "run": ("nnunet_mamba_mis.cli.benchmark.run", "train and validate datasets × trainers × plans × folds × seeds"),
    "status": ("nnunet_mamba_mis.cli.benchmark.status", "show how far the jobs of run are"),
    "report": ("nnunet_mamba_mis.cli.benchmark.report", "score and compare what is in the results folders"),
}
