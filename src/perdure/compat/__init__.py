"""Other libraries' names for what perdure does, so that a program changes one import line and nothing else."""
