"""What the child processes run: ``python -m cachefl_secure.transport.flare.running server|site|submit FOLDER``.

FLARE's own programs, with three changes at a site. Requests of the server that a round does not need are not
answered: FLARE authorises a request only if the server says that it should (``private/fed/client/admin.py``),
and among them are reading files below the site's folder and changing what is logged. Those about jobs are
answered by ``site_requests``, which deploys and starts one app only. And the process ends, with all that it
started, when its parent does. One change at the server: a site whose part of a job fails is missing from that job,
and ends it for nobody else.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from cachefl_secure.errors import LocalProtocolError
from cachefl_secure.transport.flare.certificates import ORGANISATION
from cachefl_secure.transport.flare.ending import end_with_parent
from cachefl_secure.transport.flare.engine import require_nvflare
from cachefl_secure.transport.flare.kits import SITE_BEAT_SECONDS

REPLACED = frozenset(
    {"DeployProcessor", "StartJobProcessor", "CheckResourceProcessor", "CancelResourceProcessor"}
)
ABOUT_ONE_JOB = frozenset({"AbortAppProcessor", "AbortTaskProcessor", "NotifyJobStatusProcessor"})
ABOUT_NO_JOB = frozenset({"ClientStatusProcessor", "ReportVersionProcessor"})
ANSWERED = REPLACED | ABOUT_ONE_JOB | ABOUT_NO_JOB
"""What the server may ask of a site, by the names of FLARE 2.9: to start a job and to end it."""


def main(arguments: list[str]) -> int:
    """Runs one of the parts until it ends or the parent does."""
    part, folder = arguments[0], Path(arguments[1]).resolve()
    require_nvflare()
    os.umask(0o077)
    end_with_parent()
    match part:
        case "server":
            return _run_server(folder)
        case "site":
            return _run_site(folder, arguments[2])
        case "submit":
            from cachefl_secure.transport.flare.submitting import submit

            return submit(folder, Path(arguments[2]), arguments[3:])
    raise LocalProtocolError(part)


def _run_server(folder: Path) -> int:
    from nvflare.fuel.f3.mpm import MainProcessMonitor
    from nvflare.private.fed.app.server import server_train

    let_no_site_end_a_job()
    settings = ["secure_train=true", f"org={ORGANISATION}", "config_folder="]
    given = argparse.Namespace(workspace=str(folder), fed_server="fed_server.json", set=settings)
    return int(MainProcessMonitor.run(server_train.main, run_dir=str(folder), args=given) or 0)


def _run_site(folder: Path, silo: str) -> int:
    from nvflare.fuel.f3.mpm import MainProcessMonitor
    from nvflare.private.fed.app.client import client_train

    if not (folder / "local" / "authorization.json").is_file():  # FLARE permits everything without it
        raise LocalProtocolError("no authorization.json")
    answer_only_what_rounds_need()
    beat = f"heart_beat_interval={SITE_BEAT_SECONDS}"
    settings = ["secure_train=true", f"uid={silo}", f"org={ORGANISATION}", "config_folder=", beat]
    given = argparse.Namespace(
        workspace=str(folder), fed_client="fed_client.json", set=settings, local_rank=0
    )
    return int(MainProcessMonitor.run(client_train.main, run_dir=str(folder), args=given) or 0)


def answer_only_what_rounds_need() -> None:
    """Takes all but ``ANSWERED`` from the list of requests that FLARE's client answers in this process.

    Those of ``REPLACED`` are answered by ``site_requests``; no resources are reserved, so there are none to
    cancel. The others are FLARE's, which sees only job ids that can be one.

    Raises:
        LocalProtocolError: one of them is not there: this is another FLARE than the one this was written for.
    """
    from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

    from cachefl_secure.transport.flare import site_requests as ours

    every = ClientRequestProcessors.request_processors
    by_name = {type(each).__name__: each for each in every}
    if not by_name.keys() >= ANSWERED:
        raise LocalProtocolError("FLARE's requests have other names")
    jobs = ours.Jobs()
    every[:] = [
        *(ours.Deploying(jobs), ours.Starting(jobs), ours.CheckingResources()),
        *(ours.AboutOneJob(by_name[name]) for name in sorted(ABOUT_ONE_JOB)),
        *(ours.AboutNoJob(by_name[name]) for name in sorted(ABOUT_NO_JOB)),
    ]


def let_no_site_end_a_job() -> None:
    """FLARE's server in this process takes a site's word that its part of a job ended, and not that it failed.

    FLARE would end the job, and so the round, at all sites: for one whose process the system killed, or that says so.
    """
    from nvflare.apis.job_launcher_spec import JobReturnCode
    from nvflare.private.defs import JobFailureMsgKey
    from nvflare.private.fed.server.fed_server import FederatedServer

    process = FederatedServer.process_job_failure

    def process_as_ended(self: FederatedServer, request: Any) -> Any:
        if isinstance(request.payload, dict):
            request.payload[JobFailureMsgKey.CODE] = JobReturnCode.SUCCESS
        return process(self, request)

    FederatedServer.process_job_failure = process_as_ended


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # FLARE leaves threads that would keep the process
