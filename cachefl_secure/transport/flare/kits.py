"""What stands in the files that FLARE reads, for each of its three parties.

Rules, each of which a test asserts key by key:

 1. A job may name one class at a site and one at the server, ours; its app must be the one in ``job_files``, and
    a site starts its own copy of it.
 2. No role may bring code, run shell commands or use code deployed before, project_admin included. At a site
    the coordinator's submitter may submit jobs, which are those of (1), and nobody may do anything else.
 3. Nothing that a site logs or is configured with goes to the server.
 4. Nothing listens at a site but on its loopback address.
 5. A silo that is away is noticed after 30 seconds, not 600. Round deadlines are ours anyway.
 6. Jobs and snapshots lie below the coordinator's directory, not in a shared scratch folder.

They are written anew whenever a process starts, so that a directory that moved, or was made by an older
version, has this version's rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachefl_secure.transport.flare.certificates import Pair
from cachefl_secure.transport.flare.engine import FlareEngine

ROOT = "engine/nvflare"
CA, SERVER, ADMIN, SITE, ORDERS = (f"{ROOT}/{part}" for part in ("ca", "server", "admin", "site", "orders"))

SITE_REPORTS = "site.jsonl"
"""Below the site's folder: what the executor tells the silo's operator."""

PROJECT = "cachefl-secure"
SUBMITTER = "coordinator"
SUBMITTER_ROLE = "lead"
SERVER_ROLE, SITE_ROLE = "server", "client"
TASK, PHASE, CONTENT = "cachefl", "phase", "content"
"""A task's name, and the two fields of its payload; an answer has the second only."""
CONTROLLER = "cachefl_secure.transport.flare.controller.RoundsController"
EXECUTOR = "cachefl_secure.transport.flare.executor.SiloExecutor"
APP_CHECK = "cachefl_secure.transport.flare.app_check.OnlyOurApp"
SITE_LAUNCHER = "cachefl_secure.transport.flare.site_requests.SiteLauncher"

POLL_SECONDS = 0.1
"""How often a site asks for a task while a job runs. A round has some eight exchanges, one after another."""
HEART_BEAT_SECONDS = 30
SITE_BEAT_SECONDS = 5.0
"""How often a site tells the server that it is there, and so how soon it is back after the server was away."""
TRANSFER_SECONDS = 600.0
"""How long FLARE lets one request or answer travel: as long as an exchange may take unless chosen otherwise."""
_MAX_SITES = 10_000
_LOG_BYTES, _LOG_FILES = 10 << 20, 3

ROLES = ("project_admin", "org_admin", "lead", "member")
RIGHTS = (
    *("submit_job", "clone_job", "manage_job", "download_job", "view", "operate"),
    *("shell_commands", "byoc", "server-predeployed-flwr"),
)

Files = dict[str, bytes]
"""Path below the party's folder -> content."""


def server_files(engine: FlareEngine, folder: Path) -> Files:
    """The server's configuration, without keys. ``folder`` is where it lies: FLARE wants absolute paths."""
    startup = {
        "format_version": 2,
        "servers": [
            {
                "name": PROJECT,
                "service": {"target": engine.target, "scheme": engine.scheme},
                "admin_server": engine.host,
                "admin_port": engine.port,
                "ssl_private_key": "server.key",
                "ssl_cert": "server.crt",
                "ssl_root_cert": "rootCA.pem",
                "connection_security": "mtls",
            }
        ],
    }
    storage = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"
    resources = {
        **_hardened(CONTROLLER),
        "servers": [
            {
                "admin_storage": "transfer",
                "max_num_clients": _MAX_SITES,
                "heart_beat_timeout": HEART_BEAT_SECONDS,
                "admin_timeout": 10.0,
            }
        ],
        "snapshot_persistor": {
            "path": "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor",
            "args": {
                "uri_root": "/",
                "storage": {
                    "path": storage,
                    "args": {"root_dir": str(folder / "snapshots"), "uri_root": "/"},
                },
            },
        },
        "components": [
            _component(
                "job_scheduler",
                "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
                max_jobs=4,  # one at a time is ours, but FLARE needs ten seconds to end one
                min_schedule_interval=1.0,
            ),
            _component(
                "job_manager",
                "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                uri_root=str(folder / "jobs"),
                job_store_id="job_store",
            ),
            _component("job_store", storage),
            _component(
                "process_launcher",
                "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher",
            ),
        ],
    }
    may = {"submit_job": "any", "manage_job": "n:submitter", "view": "any"}
    return {
        "startup/fed_server.json": _json(startup),
        "local/resources.json": _json(resources),
        "local/authorization.json": _json(_permissions({SUBMITTER_ROLE: may})),
        "local/log_config.json": _json(_logging()),
    }


def site_files(engine: FlareEngine) -> Files:
    """A site's configuration, without its key."""
    startup = {
        "format_version": 2,
        "servers": [
            {
                "name": PROJECT,
                "service": {"target": engine.target, "scheme": engine.scheme},
                "identity": engine.host,
            }
        ],
        "client": {
            "ssl_private_key": "client.key",
            "ssl_cert": "client.crt",
            "ssl_root_cert": "rootCA.pem",
            "is_leaf": True,
            "connection_security": "mtls",
            # FLARE sends the server what a site is configured with, unless something is said instead (rule 3).
            "site_config": {"format": 1},
        },
    }
    resources = {
        **_hardened(EXECUTOR),
        "client": {"retry_timeout": 30, "communication_timeout": TRANSFER_SECONDS},
        "app_validator": {"path": APP_CHECK},
        "components": [
            _component(
                "resource_manager",
                "nvflare.app_common.resource_managers.gpu_resource_manager.GPUResourceManager",
                num_of_gpus=0,
                mem_per_gpu_in_GiB=0,
            ),
            _component(
                "resource_consumer",
                "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
            ),
            _component("process_launcher", SITE_LAUNCHER),
        ],
    }
    return {
        "startup/fed_client.json": _json(startup),
        "local/resources.json": _json(resources),
        "local/authorization.json": _json(_permissions({SUBMITTER_ROLE: {"submit_job": "any"}})),
        "local/log_config.json": _json(_logging()),
    }


def admin_files(engine: FlareEngine) -> Files:
    """What the coordinator's own submitter of jobs is configured with, without its key."""
    startup = {
        "format_version": 1,
        "admin": {
            "project_name": PROJECT,
            "username": SUBMITTER,
            "server_identity": engine.host,
            "scheme": engine.scheme,
            "host": engine.host,
            "port": engine.port,
            "connection_security": "mtls",
            "uid_source": "user_input",
            "with_file_transfer": True,
            "upload_dir": "transfer",
            "download_dir": "transfer",
            "client_key": "client.key",
            "client_cert": "client.crt",
            "ca_cert": "rootCA.pem",
        },
    }
    resources = {
        "format_version": 1,
        "admin": {
            "idle_timeout": 900.0,
            "login_timeout": 10.0,
            "with_debug": False,
            "authenticate_msg_timeout": 5.0,
            "prompt": "> ",
        },
    }
    return {"startup/fed_admin.json": _json(startup), "local/resources.json": _json(resources)}


def key_files(stem: str, pair: Pair, authority: bytes) -> Files:
    """The key and the certificates of one party; ``stem`` is server or client."""
    return {
        f"startup/{stem}.key": pair.key,
        f"startup/{stem}.crt": pair.certificate,
        "startup/rootCA.pem": authority,
    }


def silo_app() -> Files:
    """The one app that a site accepts, byte for byte."""
    config = {
        "format_version": 2,
        "executors": [{"tasks": [TASK], "executor": {"path": EXECUTOR, "args": {}}}],
        "components": [],
        "default_task_fetch_interval": POLL_SECONDS,
        "task_check_interval": 1.0,
    }
    return {"config/config_fed_client.json": _json(config)}


def job_files(order: str, sites: list[str]) -> Files:
    """A job without code: our controller at the server, our executor at these sites."""
    meta = {
        "name": "cachefl-secure",
        "resource_spec": {},
        "min_clients": 1,
        "deploy_map": {"coordinator": ["server"], "silo": sites},
    }
    config = {
        "format_version": 2,
        "server": {"heart_beat_timeout": HEART_BEAT_SECONDS, "task_request_interval": POLL_SECONDS},
        "workflows": [{"id": "rounds", "path": CONTROLLER, "args": {"order": order}}],
        "components": [],
        "dead_client_grace_period": 10.0,
        "dead_client_check_lead_time": 5.0,
    }
    return {
        "meta.json": _json(meta),
        "coordinator/config/config_fed_server.json": _json(config),
        **{f"silo/{path}": content for path, content in silo_app().items()},
    }


def _hardened(only_class: str) -> dict[str, Any]:
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [only_class],
        "allow_log_streaming": False,
    }


def _permissions(allowed: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    nothing = dict.fromkeys(RIGHTS, "none")
    return {
        "format_version": "1.0",
        "permissions": {role: nothing | dict(allowed.get(role, {})) for role in ROLES},
    }


def _component(name: str, path: str, **arguments: object) -> dict[str, Any]:
    return {"id": name, "path": path, "args": arguments}


def _logging() -> dict[str, Any]:
    """One file that rotates, no console: what is printed nevertheless goes to output.txt."""
    handler = {
        "class": "logging.handlers.RotatingFileHandler",
        "level": "INFO",
        "formatter": "plain",
        "filename": "log.txt",
        "mode": "a",
        "maxBytes": _LOG_BYTES,
        "backupCount": _LOG_FILES,
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"file": handler},
        "loggers": {"root": {"level": "INFO", "handlers": ["file"]}},
    }


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
