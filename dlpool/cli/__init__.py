"""What a person types: parsing, progress, tables, exit codes."""
