"""What one stage does inside its job. Knows no Prefect."""
