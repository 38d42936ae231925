"""Plans for Mamba-MIS: patch and batch size that fit a GPU's memory."""

PLANS_NAME = "nnUNetMambaMISPlans"
STOCK_PLANS_NAME = "nnUNetPlans"
