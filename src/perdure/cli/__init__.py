"""The command line. Needs `pip install 'perdure[cli]'`.

Exit codes: 0 done, 1 something is absent, in conflict, damaged or unequal, 2 wrong usage, 3 the place failed, 130 Ctrl-C.
Results go to stdout and everything else to stderr; an error is one line, `perdure: ...`.
"""
