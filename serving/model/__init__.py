"""Opens, proves and runs one version of a model."""
