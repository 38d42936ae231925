"""Plans for Mamba-MIS: patch and batch size by the memory that training takes."""

PLANS_NAME = "nnUNetMambaMISPlans"
STOCK_PLANS_NAME = "nnUNetPlans"
