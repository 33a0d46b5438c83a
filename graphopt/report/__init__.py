"""What is told about a run: JSON and HTML."""
