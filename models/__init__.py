"""Reference models: the data and scripts that build them, and the files they wrote."""
