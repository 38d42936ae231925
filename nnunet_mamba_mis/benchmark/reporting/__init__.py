"""The report: tables, figures, and pages."""
