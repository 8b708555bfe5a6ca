"""Functions whose results last, and entries that are made when they are asked for."""
