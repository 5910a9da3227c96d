"""One command a file: parse, call one function of ``cachefl_secure.federation``, print."""
