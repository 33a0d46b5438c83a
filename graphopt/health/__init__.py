"""What may be wrong with an installation or a machine, one concern a file."""
