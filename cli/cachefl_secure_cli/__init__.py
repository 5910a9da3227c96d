"""The command line: parse, call one function of ``cachefl_secure.federation``, print.

One command a file, registered in ``main``. Words and exit codes for errors are in ``failures``; how
results are printed, and the one ``--json`` envelope, in ``output``; pictures in ``figures``. Torch and
the other heavy imports happen inside commands, so that ``--help`` answers at once.
"""
