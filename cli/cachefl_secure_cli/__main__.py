"""``python -m cachefl_secure_cli`` is ``cachefl-secure``."""

from cachefl_secure_cli.main import app

app(prog_name="cachefl-secure")
