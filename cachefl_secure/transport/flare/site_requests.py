"""How a site answers the server's requests about jobs.

Rules:

 1. A job's id is looked at before anything else, and is one that FLARE makes. The run folder is named after it,
    and FLARE empties the run folder: the ids ``local`` and ``startup`` would be the site's policy and its key.
 2. Nothing of the server's is written below the site's folder. What it sent is compared in memory; the app and
    what is said about the job are the site's own. So no field of the server's chooses a launcher, resources, a
    privacy scope or code.
 3. What runs is what was deployed: an id starts once, and only if it passed (2) in this process. Deploying and
    starting exclude each other, since FLARE's start looks at a run folder that a deployment may be changing.
 4. A job's process imports from where this process does, and from no folder of the job.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import threading
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.job_launcher_spec import JobHandleSpec
from nvflare.apis.shareable import Shareable
from nvflare.apis.workspace import Workspace
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle
from nvflare.private.admin_defs import Message, error_reply, ok_reply
from nvflare.private.defs import ERROR_MSG_PREFIX, RequestHeader, TrainingTopic
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.scheduler_constants import ShareableHeader
from nvflare.utils.job_launcher_utils import get_credential_env
from nvflare.utils.process_utils import spawn_process

from cachefl_secure.errors import LocalProtocolError
from cachefl_secure.transport.flare.app_check import differs_in_upload
from cachefl_secure.transport.flare.kits import PROJECT, silo_app

_JOB = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_APP = "silo"
_MOST_WAITING, _MOST_RUNNING = 8, 8
"""A server runs four jobs at a time (``kits``); one that asks for more shall not fill this machine."""


class Jobs:
    """The jobs that may start at this site, and the only place where they are deployed and started."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._waiting: dict[str, Path] = {}

    def deploy(self, engine: Any, job: str, upload: object) -> str:
        """Writes the run folder, from the site's own copy of the app. A reason why not; empty if it did."""
        if reason := differs_in_upload(upload):
            return reason
        with self._one_at_a_time:
            workspace = Workspace(root_dir=engine.args.workspace, site_name=engine.get_client_name())
            run = Path(workspace.get_run_dir(job))
            try:
                run.mkdir(mode=0o700)
            except FileExistsError:  # nothing is ever removed for the server's sake
                return "this job was here before"
            app = Path(workspace.get_app_dir(job))
            for path, content in silo_app().items():
                (app / path).parent.mkdir(parents=True, exist_ok=True)
                (app / path).write_bytes(content)
            (run / "fl_app.txt").write_text(_APP)
            Path(workspace.get_job_meta_path(job)).write_text(json.dumps(_meta(job)))
            self._waiting[job] = run
            while len(self._waiting) > _MOST_WAITING:  # deployed and never started: those were made here
                shutil.rmtree(self._waiting.pop(next(iter(self._waiting))), ignore_errors=True)
        return ""

    def start(self, engine: Any, job: str) -> str:
        """Starts what ``deploy`` wrote, once. A reason why not; empty if it did.

        Raises:
            RuntimeError: FLARE's, if the process cannot be started.
        """
        with self._one_at_a_time:
            if job not in self._waiting:
                return "this job was not deployed here"
            if len(engine.get_all_job_ids()) >= _MOST_RUNNING:
                return "too many jobs run here"
            del self._waiting[job]
            said = str(engine.start_app(job, job_meta=_meta(job)))
            return said if said.startswith(ERROR_MSG_PREFIX) else ""


class Deploying(RequestProcessor):  # type: ignore[misc]
    """In the place of ``DeployProcessor``."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def get_topics(self) -> list[str]:
        return [TrainingTopic.DEPLOY]

    def process(self, req: Message, app_ctx: Any) -> Message:
        if (job := job_of(req)) is None:
            return _refused("no job has this id")
        if reason := self._jobs.deploy(app_ctx, job, req.body):
            return _refused(reason)
        return ok_reply(body=f"deployed {_APP}")


class Starting(RequestProcessor):  # type: ignore[misc]
    """In the place of ``StartJobProcessor``. Resources that the server names are not looked at."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def get_topics(self) -> list[str]:
        return [TrainingTopic.START_JOB]

    def process(self, req: Message, app_ctx: Any) -> Message:
        if (job := job_of(req)) is None:
            return _refused("no job has this id")
        if reason := self._jobs.start(app_ctx, job):
            return _refused(reason)
        return ok_reply(topic=f"reply_{req.topic}", body="started")


class CheckingResources(RequestProcessor):  # type: ignore[misc]
    """In the place of ``CheckResourceProcessor``: a job of ours asks for none, and no other gets any."""

    def get_topics(self) -> list[str]:
        return [TrainingTopic.CHECK_RESOURCE]

    def process(self, req: Message, app_ctx: Any) -> Message:
        answer = Shareable()
        answer.set_header(ShareableHeader.IS_RESOURCE_ENOUGH, job_of(req) is not None and not req.body)
        answer.set_header(ShareableHeader.RESOURCE_RESERVE_TOKEN, "")
        return Message(topic=f"reply_{req.topic}", body=answer)


class AboutOneJob(RequestProcessor):  # type: ignore[misc]
    """FLARE's processor of a request about one job, if the id is one."""

    def __init__(self, inner: RequestProcessor) -> None:
        self._inner = inner

    def get_topics(self) -> list[str]:
        return list(self._inner.get_topics())

    def process(self, req: Message, app_ctx: Any) -> Message:
        return _refused("no job has this id") if job_of(req) is None else self._inner.process(req, app_ctx)


class AboutNoJob(AboutOneJob):
    """FLARE's processor of a request that names no job, if it names none."""

    def process(self, req: Message, app_ctx: Any) -> Message:
        if req.get_header(RequestHeader.JOB_ID) is not None:
            return _refused("this request is about no job")
        return self._inner.process(req, app_ctx)


class SiteLauncher(ClientProcessJobLauncher):  # type: ignore[misc]
    """FLARE's launcher, without the job's ``custom`` folder on PYTHONPATH."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: Any) -> JobHandleSpec:
        credentials = get_credential_env(fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS) or {})
        command = shlex.split(self.get_command(job_meta, fl_ctx))
        folder = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_app_custom_dir(job_meta["job_id"]))
        if os.path.lexists(folder):  # FLARE's job process adds it to its own path, if it is there
            raise LocalProtocolError("a job has a custom folder")
        return ProcessHandle(process_adapter=spawn_process(command, {**os.environ, **credentials}))


def job_of(request: Message) -> str | None:
    """The id of the job that the request is about, if it is one that FLARE makes."""
    job = request.get_header(RequestHeader.JOB_ID)
    return job if isinstance(job, str) and _JOB.match(job) else None


def _meta(job: str) -> dict[str, Any]:
    """What FLARE's job process has to find about a job; it makes nothing of other sites' names."""
    return {"job_id": job, "name": PROJECT, "resource_spec": {}, "job_clients": []}


def _refused(reason: str) -> Message:
    return error_reply(f"{ERROR_MSG_PREFIX}: {reason}")
