"""Write the report: tables, figures and pages."""
