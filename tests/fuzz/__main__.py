"""python -m tests.fuzz [libFuzzer options]: the targets under atheris, guided by coverage. See ``make fuzz``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["cachefl_secure"]):
    from tests.fuzz.targets import one_input

if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
