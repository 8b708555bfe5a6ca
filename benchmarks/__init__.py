"""How fast perdure is beside the same system calls written by hand, and beside other libraries: `python -m benchmarks`."""
