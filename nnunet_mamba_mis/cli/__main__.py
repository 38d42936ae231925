"""`python -m nnunet_mamba_mis.cli`: the command `mamba_mis`."""

from nnunet_mamba_mis.cli.main import main

raise SystemExit(main())
