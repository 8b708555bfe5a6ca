"""`perdure demo`: several processes count words together, one is killed, the whole program is killed, and it still adds up."""
