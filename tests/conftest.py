"""Ties tests to claims, and finds real data.

Every run watches the ledgers that it makes (``every_ledger``), and refuses marks with unknown ids. A full run
(no paths, nothing deselected) also fails when an enforced claim has no *passed* test. ``pytest -v`` ends with
the table of claims.

With ``pytest -n 2`` each worker process hands in what it has shown when it ends, and all of it is judged together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.claims import REPOSITORY, read_claims, unproven
from tests.every_ledger import FOUND, SEEN, compare_in_processes, watch_ledgers

# The same examples in every run, and no limit on how long one may take: machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

CLAIMS = read_claims()
_REACHED_THE_END = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


class Evidence:
    """What this run has shown for each claim."""

    def __init__(self) -> None:
        self.collected: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.deselected = False


_EVIDENCE = pytest.StashKey[Evidence]()


def _claim_ids(item: pytest.Item) -> list[str]:
    return [str(argument) for mark in item.iter_markers("claim") for argument in mark.args]


def _is_full(config: pytest.Config) -> bool:
    from_testpaths = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return from_testpaths and not config.stash[_EVIDENCE].deselected and not config.option.collectonly


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_EVIDENCE] = Evidence()
    watch_ledgers()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    for item in items:
        for claim_id in _claim_ids(item):
            if claim_id not in CLAIMS:
                raise pytest.UsageError(f"{item.nodeid}: no claim {claim_id!r} in threat_model/claims.toml")
            config.stash[_EVIDENCE].collected[claim_id] += 1
    if isinstance(items, list):
        items.sort(key=lambda item: item.path.name == "test_every_ledger.py")  # stable: only these move


@pytest.hookimpl(trylast=True)
def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items[:1]:
        item.config.stash[_EVIDENCE].deselected = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
        item.config.stash[_EVIDENCE].passed.update(_claim_ids(item))
    return report


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A worker ended: what it has shown counts, and its ledgers are compared with all others at the end."""
    handed_in = getattr(node, "workeroutput", {}).get("shown")
    if handed_in is None:
        return
    evidence: Evidence = node.config.stash[_EVIDENCE]
    collected, passed, deselected, ledgers = handed_in
    evidence.collected |= Counter(collected)  # each has collected all
    evidence.passed += Counter(passed)
    evidence.deselected |= deselected
    for runs, delta, count in ledgers:
        SEEN[tuple(tuple(run) for run in runs), delta] += count


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    evidence = session.config.stash[_EVIDENCE]
    if _is_worker(session.config):
        ledgers = [(*charged, count) for charged, count in SEEN.items() if count > 0]
        shown = (dict(evidence.collected), dict(evidence.passed), evidence.deselected, ledgers)
        session.config.workeroutput["shown"] = shown  # type: ignore[attr-defined]  # xdist's
        return
    if session.config.getoption("numprocesses", None) and exitstatus in _REACHED_THE_END:
        opinions = compare_in_processes(SEEN)
        FOUND.append(opinions)
        if opinions.contradictions:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if exitstatus in _REACHED_THE_END and _is_full(session.config) and unproven(CLAIMS, evidence.passed):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    evidence = config.stash[_EVIDENCE]
    for opinions in FOUND:
        terminalreporter.line(str(opinions))
        for contradiction in opinions.contradictions:
            terminalreporter.line(contradiction, red=True)
    if config.get_verbosity() > 0:
        terminalreporter.section("claims (tests passed / collected)")
        for claim in CLAIMS.values():
            tests = f"{evidence.passed[claim.id]}/{evidence.collected[claim.id]}"
            terminalreporter.line(f"{claim.id:4}{claim.status.value:9}{tests:>7}  {claim.text}")
    if exitstatus in _REACHED_THE_END and _is_full(config):
        for claim in unproven(CLAIMS, evidence.passed):
            terminalreporter.line(f"{claim.id}: enforced, but no test of it passed", red=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data. Skips when it is absent: no part of the project needs it."""
    root = Path(os.environ.get("CACHEFL_SECURE_DATA") or REPOSITORY.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip("real data absent: set CACHEFL_SECURE_DATA to a folder that holds it")
    return root
