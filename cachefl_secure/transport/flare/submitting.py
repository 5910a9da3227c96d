"""Hands one order to FLARE's server as a job and follows it to its end, in a process of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
from nvflare.fuel.flare_api.api_spec import NoConnection
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from cachefl_secure.errors import CacheflError, RoundAborted, TransportError
from cachefl_secure.transport.flare import kits, reports
from cachefl_secure.transport.flare.ending import last_words
from cachefl_secure.transport.flare.reports import Line, Order

_LOGIN_SECONDS, _POLL_SECONDS = 60.0, 1.0
_SILENT_BEATS = 3
_LOST_SECONDS = 60.0
_JOB_FOLDER = "job"


def submit(admin: Path, folder: Path, silos: list[str]) -> int:
    """Waits for the silos, submits the order that lies in the folder, and says how FLARE ended the job."""

    def say(line: Line) -> None:
        reports.write_line(folder / reports.SUBMIT_FILE, line)

    try:
        order = msgspec.json.decode((folder / reports.ORDER_FILE).read_bytes(), type=Order)
        session = _log_in(admin)
        connected = _wait_for(session, silos, order, say)
        job = _submit(session, folder, connected)
        say(reports.Submitted(job=job))
        _follow(session, job, folder, say)
    except CacheflError as error:
        say(reports.failed(error))
    except Exception as error:  # whatever FLARE raises when its server is gone or refuses: its type is enough
        reason = f"refused or went away ({type(error).__name__}); its log says why"
        say(reports.failed(TransportError("FLARE's server", reason)))
    finally:
        say(reports.Ended())
    return 0


def _log_in(admin: Path) -> Session:
    until = time.monotonic() + _LOGIN_SECONDS
    while True:
        try:
            return new_secure_session(kits.SUBMITTER, str(admin), timeout=10.0)
        except NoConnection:
            if time.monotonic() > until:
                raise TransportError("FLARE's server", "does not answer; its log says why") from None
            time.sleep(_POLL_SECONDS)


def _wait_for(session: Session, silos: list[str], order: Order, say: Any) -> list[str]:
    """The silos that are connected: all, or those that are when the time for connecting is over."""
    until, said = time.monotonic() + order.connect_seconds, 0
    while True:
        there = _connected(session)
        connected = sorted(there.intersection(silos))
        if len(connected) != said:
            said = len(connected)
            say(reports.Progressed(done=said, total=len(silos), what="silos connected"))
        if said == len(silos):
            return connected
        if time.monotonic() > until:
            for silo in sorted(set(silos) - there):
                say(reports.Told(text=f"{silo}: not connected"))
            if not connected:
                raise RoundAborted(0, order.needed)
            return connected
        time.sleep(_POLL_SECONDS)


def _connected(session: Session) -> set[str]:
    """The sites of which FLARE's server, on this machine, has heard lately. It lists others for a while longer."""
    since = time.time() - _SILENT_BEATS * kits.SITE_BEAT_SECONDS
    return {
        client.name for client in session.get_system_info().client_info if client.last_connect_time > since
    }


def _submit(session: Session, folder: Path, connected: list[str]) -> str:
    job = folder / _JOB_FOLDER
    for path, content in kits.job_files(folder.name, connected).items():
        (job / path).parent.mkdir(parents=True, exist_ok=True)
        (job / path).write_bytes(content)
    return str(session.submit_job(str(job)))


def _follow(session: Session, job: str, folder: Path, say: Any) -> None:
    """Until FLARE has ended the job, or the command that waits for it has ended this process."""
    said = reports.Tail(folder / reports.JOB_FILE)
    last_words.append(lambda: _abort_unless_ended(session, job, said))
    seen: tuple[str, ...] = ()
    until = time.monotonic() + _LOST_SECONDS
    while True:
        try:
            meta, there = session.get_job_meta(job), tuple(sorted(_connected(session)))
        except Exception:  # a server that is busy with long vectors may be late; one that is gone stays gone
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)
            continue
        until = time.monotonic() + _LOST_SECONDS
        status, details = str(meta.get("status", "")), meta.get("job_deploy_detail") or []
        if status.startswith("FINISHED"):
            break
        if there != seen:
            seen = there
            say(reports.Connected(silos=there))
        time.sleep(_POLL_SECONDS)
    last_words.clear()
    if not details:  # FLARE writes them after the status
        time.sleep(_POLL_SECONDS)
        details = session.get_job_meta(job).get("job_deploy_detail") or []
    for detail in map(str, details):  # "silo-1: OK", or why that site refused the job
        if not detail.endswith(": OK"):
            say(reports.Told(text=detail))
    if status != "FINISHED:COMPLETED":
        raise TransportError("the job", f"ended as {status} at FLARE's server; its log says why")


def _abort_unless_ended(session: Session, job: str, said: reports.Tail) -> None:
    if not any(isinstance(line, reports.Ended) for line in said.lines()):
        session.abort_job(job)
