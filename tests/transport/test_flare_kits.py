"""What the FLARE transport writes and reads, without FLARE: URLs, certificates, kits, reports."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from cachefl_secure.errors import (
    BadSignature,
    BudgetExhausted,
    CohortExhausted,
    ConfigError,
    LocalProtocolError,
    MissingExtra,
    RoundAborted,
    SharesRejected,
    TransportError,
)
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import SiloId
from cachefl_secure.transport.flare import kits, reports
from cachefl_secure.transport.flare.certificates import certificate_fingerprint
from cachefl_secure.transport.flare.engine import FlareEngine, parse_engine, require_nvflare
from cachefl_secure.transport.flare.enrolling import (
    approve_site,
    engine_of,
    found_engine,
    install_site,
    request_site,
)
from cachefl_secure.transport.flare.processes import check_port_free
from tests.claims import REPOSITORY
from tests.small_federation import SmallFederation, found

ENGINE = parse_engine("nvflare+grpc://flare.example.org:8002")
SILO, OTHER = SiloId("silo-1"), SiloId("silo-2")
MODULES = {
    "engine",
    "certificates",
    "kits",
    "enrolling",
    "children",
    "processes",
    "reaching",
    "reports",
    "rounds",
}


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    made = found(tmp_path, records=(12, 20, 9))
    found_engine(StateDir(made.coordinator), ENGINE, "small")
    return made


def installed(federation: SmallFederation, silo: SiloId = SILO) -> StateDir:
    state = StateDir(federation.silos[silo])
    request = request_site(state, silo, ENGINE)
    install_site(state, approve_site(StateDir(federation.coordinator), silo, request), ENGINE)
    return state


# --- URLs, and FLARE that is not there


@pytest.mark.parametrize(
    ("url", "engine"),
    [
        ("nvflare+grpc://localhost:8002", FlareEngine("grpc", "localhost", 8002)),
        ("nvflare+http://flare.example.org:443/", FlareEngine("http", "flare.example.org", 443)),
        ("nvflare+tcp://192.0.2.7:65535", FlareEngine("tcp", "192.0.2.7", 65535)),
        ("nvflare+grpc://UPPER.example:1", FlareEngine("grpc", "upper.example", 1)),
    ],
)
def test_an_engine_url_names_a_scheme_a_host_and_a_port(url: str, engine: FlareEngine) -> None:
    assert parse_engine(url) == engine
    assert parse_engine(engine.url) == engine


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:8002", "grpc://localhost:8002", "nvflare://localhost:8002"),
        *("nvflare+ftp://localhost:8002", "nvflare+grpc://localhost", "nvflare+grpc://:8002"),
        *("nvflare+grpc://localhost:0", "nvflare+grpc://localhost:65536", "nvflare+grpc://localhost:x"),
        *(
            "nvflare+grpc://a b:1",
            "nvflare+grpc://[::1]:8002",
            "nvflare+grpc://-a:1",
            f"nvflare+grpc://{'a' * 64}:1",
        ),
        *(
            "nvflare+grpc://user@localhost:1",
            "nvflare+grpc://localhost:1/x",
            "nvflare+grpc://localhost:1?x=1",
        ),
    ],
)
def test_anything_else_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--engine: .+ .+"):
        parse_engine(url)


def test_a_server_on_a_loopback_name_is_not_reachable_from_elsewhere() -> None:
    assert parse_engine("nvflare+grpc://localhost:1").listens_on == "127.0.0.1"
    assert parse_engine("nvflare+grpc://127.0.0.9:1").listens_on == "127.0.0.1"
    assert ENGINE.listens_on == "0.0.0.0"


def test_without_flare_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        require_nvflare()
    assert caught.value.extra == "nvflare"


def test_another_version_of_flare_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.10.1")
    with pytest.raises(MissingExtra, match=r"2\.10\.1 is installed, 2\.9 is needed"):
        require_nvflare()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_a_command_imports_does_not_import_flare(module: str) -> None:
    program = f"import sys, cachefl_secure.transport.flare.{module}; print(*({{'nvflare', 'psutil'}} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


# --- keys and certificates


def private_keys_below(root: Path) -> dict[Path, bytes]:
    """Every PEM private key, by its file."""
    return {
        path: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    }


def numbers_of(pem: bytes) -> set[bytes]:
    """The secret integers of an RSA key, as bytes."""
    numbers: Any = serialization.load_pem_private_key(pem, None)
    private = numbers.private_numbers()
    return {
        value.to_bytes((value.bit_length() + 7) // 8, "big") for value in (private.d, private.p, private.q)
    }


def test_a_sites_private_key_is_made_at_the_site_and_stays_there(federation: SmallFederation) -> None:
    state = StateDir(federation.silos[SILO])
    request = request_site(state, SILO, ENGINE)
    keys = private_keys_below(state.root)
    assert list(keys) == [state.path("engine/nvflare/site/startup/client.key")]
    ((place, pem),) = keys.items()
    assert place.stat().st_mode & 0o077 == 0
    assert b"PRIVATE" not in request
    package = approve_site(StateDir(federation.coordinator), SILO, request)
    held = b"".join(path.read_bytes() for path in federation.coordinator.rglob("*") if path.is_file())
    for secret in numbers_of(pem):
        for seen in (request, package, held):
            assert secret not in seen
            assert secret.hex().encode() not in seen.lower()
    body = pem.split(b"-----")[2].split()
    assert not any(line in seen for line in body[1:] for seen in (request, package, held))


def test_asking_again_asks_with_the_same_key(federation: SmallFederation) -> None:
    state = StateDir(federation.silos[SILO])
    request_site(state, SILO, ENGINE)
    before = private_keys_below(state.root)
    request_site(state, SILO, ENGINE)
    assert private_keys_below(state.root) == before


def test_founding_again_makes_no_second_authority(federation: SmallFederation) -> None:
    state = StateDir(federation.coordinator)
    before = private_keys_below(state.root)
    moved = parse_engine("nvflare+tcp://flare.example.org:9000")
    assert found_engine(state, moved, "small") == certificate_fingerprint(
        state.read("engine/nvflare/ca/ca.crt")
    )
    assert private_keys_below(state.root) == before
    assert engine_of(state) == moved
    with pytest.raises(ConfigError, match=r"founded for the host flare\.example\.org"):
        found_engine(state, parse_engine("nvflare+grpc://other.example.org:8002"), "small")


def test_a_silo_that_is_not_in_the_roster_gets_no_certificate(federation: SmallFederation) -> None:
    request = request_site(StateDir(federation.silos[SILO]), SILO, ENGINE)
    renamed = json.dumps({**json.loads(request), "silo": "silo-9"}).encode()
    with pytest.raises(ConfigError, match="silo-9 is not in the roster"):
        approve_site(StateDir(federation.coordinator), SiloId("silo-9"), renamed)


def test_a_request_that_another_silo_signed_is_refused(federation: SmallFederation) -> None:
    request = request_site(StateDir(federation.silos[OTHER]), OTHER, ENGINE)
    with pytest.raises(ConfigError, match="is 'silo-2', not silo-1"):
        approve_site(StateDir(federation.coordinator), SILO, request)
    for change in ({"silo": "silo-1"}, {"request": json.loads(request)["request"][:-9]}, {"signature": "zz"}):
        changed = json.dumps({**json.loads(request), **change}).encode()
        silo = SiloId(json.loads(changed)["silo"])
        with pytest.raises(BadSignature):
            approve_site(StateDir(federation.coordinator), silo, changed)


@pytest.mark.parametrize(
    "request_bytes", [b"", b"{}", b"\xff", b"[" * 9999, b'{"version": 2}', b"x" * 70_000]
)
def test_bytes_that_are_no_request_are_refused_with_a_sentence(
    federation: SmallFederation, request_bytes: bytes
) -> None:
    with pytest.raises(ConfigError, match="the site request: "):
        approve_site(StateDir(federation.coordinator), SILO, request_bytes)


def test_a_site_takes_no_package_but_its_own_from_its_coordinator(
    federation: SmallFederation, tmp_path: Path
) -> None:
    coordinator, state = StateDir(federation.coordinator), StateDir(federation.silos[SILO])
    package = approve_site(coordinator, SILO, request_site(state, SILO, ENGINE))
    request_site(StateDir(federation.silos[OTHER]), OTHER, ENGINE)
    with pytest.raises(ConfigError, match="is for silo-1, this is silo-2"):
        install_site(StateDir(federation.silos[OTHER]), package, ENGINE)
    with pytest.raises(ConfigError, match=r"is nvflare\+grpc://.*, not nvflare\+tcp"):
        install_site(state, package, parse_engine("nvflare+tcp://flare.example.org:8002"))
    with pytest.raises(BadSignature):
        install_site(state, json.dumps({**json.loads(package), "engine": "nvflare+grpc://evil:1"}).encode())
    state.write("engine/nvflare/site/startup/client.key", private_keys_below(coordinator.root).popitem()[1])
    with pytest.raises(ConfigError, match="not for the key that was made here"):
        install_site(state, package, ENGINE)


def test_a_silo_with_a_name_that_flare_uses_is_told_so(federation: SmallFederation) -> None:
    for name in ("server", "007", "1e5", "nan", "true", ENGINE.host):
        with pytest.raises(ConfigError, match="join under another name"):
            request_site(StateDir(federation.silos[SILO]), SiloId(name), ENGINE)


# --- the kits, key by key

NOTHING = dict.fromkeys(kits.RIGHTS, "none")


def test_every_right_and_role_of_flare_is_named() -> None:
    assert set(kits.ROLES) == {"project_admin", "org_admin", "lead", "member"}
    assert set(kits.RIGHTS) >= {"byoc", "shell_commands", "server-predeployed-flwr", "operate", "submit_job"}


def test_the_kit_of_a_site(federation: SmallFederation) -> None:
    state = installed(federation)
    site = state.path("engine/nvflare/site")
    files = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert files == {
        *("startup/fed_client.json", "startup/client.key", "startup/client.crt", "startup/rootCA.pem"),
        *("local/resources.json", "local/authorization.json", "local/log_config.json"),
    }
    resources = json.loads((site / "local/resources.json").read_bytes())
    components = resources.pop("components")
    assert resources == {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": ["cachefl_secure.transport.flare.executor.SiloExecutor"],
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "communication_timeout": 600.0},
        "app_validator": {"path": "cachefl_secure.transport.flare.app_check.OnlyOurApp"},
    }
    assert [each["id"] for each in components] == [
        "resource_manager",
        "resource_consumer",
        "process_launcher",
    ]
    assert components[-1]["path"] == "cachefl_secure.transport.flare.site_requests.SiteLauncher"
    assert json.loads((site / "local/authorization.json").read_bytes()) == {
        "format_version": "1.0",
        "permissions": {
            "project_admin": NOTHING,
            "org_admin": NOTHING,
            "lead": {**NOTHING, "submit_job": "any"},
            "member": NOTHING,
        },
    }
    startup = json.loads((site / "startup/fed_client.json").read_bytes())
    assert startup == {
        "format_version": 2,
        "servers": [
            {
                "name": "cachefl-secure",
                "service": {"target": "flare.example.org:8002", "scheme": "grpc"},
                "identity": "flare.example.org",
            }
        ],
        "client": {
            "ssl_private_key": "client.key",
            "ssl_cert": "client.crt",
            "ssl_root_cert": "rootCA.pem",
            "is_leaf": True,
            "connection_security": "mtls",
            "site_config": {"format": 1},
        },
    }
    for path in files:
        assert str(federation.silos[SILO]).encode() not in (site / path).read_bytes(), path


def test_the_kit_of_the_server(federation: SmallFederation) -> None:
    server = federation.coordinator / "engine/nvflare/server"
    resources = json.loads((server / "local/resources.json").read_bytes())
    components = {each["id"]: each["args"] for each in resources.pop("components")}
    storage = resources.pop("snapshot_persistor")["args"]["storage"]["args"]["root_dir"]
    assert Path(storage).is_relative_to(federation.coordinator.resolve())
    assert Path(components["job_manager"]["uri_root"]).is_relative_to(federation.coordinator.resolve())
    assert set(components) == {"job_scheduler", "job_manager", "job_store", "process_launcher"}
    assert resources == {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": ["cachefl_secure.transport.flare.controller.RoundsController"],
        "allow_log_streaming": False,
        "servers": [
            {
                "admin_storage": "transfer",
                "max_num_clients": 10_000,
                "heart_beat_timeout": 30,
                "admin_timeout": 10.0,
            }
        ],
    }
    assert json.loads((server / "local/authorization.json").read_bytes())["permissions"] == {
        "project_admin": NOTHING,
        "org_admin": NOTHING,
        "lead": {**NOTHING, "submit_job": "any", "manage_job": "n:submitter", "view": "any"},
        "member": NOTHING,
    }
    startup = json.loads((server / "startup/fed_server.json").read_bytes())
    assert startup["servers"][0]["connection_security"] == "mtls"
    assert startup["servers"][0]["admin_port"] == ENGINE.port, "one port to open, not two"
    admin = json.loads((federation.coordinator / "engine/nvflare/admin/startup/fed_admin.json").read_bytes())
    assert admin["admin"]["connection_security"] == "mtls"


def test_nothing_of_the_engine_but_certificates_can_be_read_by_others(federation: SmallFederation) -> None:
    installed(federation)
    for party in (federation.coordinator, federation.silos[SILO]):
        assert private_keys_below(party)
        for path in private_keys_below(party):
            assert path.stat().st_mode & 0o777 == 0o600
        assert (party / "engine").stat().st_mode & 0o777 == 0o700


def test_a_job_carries_configuration_only() -> None:
    files = kits.job_files("0" * 32, ["silo-1", "silo-2"])
    assert set(files) == {
        *("meta.json", "coordinator/config/config_fed_server.json", "silo/config/config_fed_client.json"),
    }
    server = json.loads(files["coordinator/config/config_fed_server.json"])
    assert [each["path"] for each in server["workflows"]] == [kits.CONTROLLER]
    assert server["workflows"][0]["args"] == {"order": "0" * 32}
    silo = json.loads(files["silo/config/config_fed_client.json"])
    assert silo["executors"] == [{"tasks": ["cachefl"], "executor": {"path": kits.EXECUTOR, "args": {}}}]
    assert server["components"] == silo["components"] == []


# --- ports, orders and reports


def test_a_port_that_another_program_has_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(TransportError, match=f"port {port} of this machine cannot be used: "):
            check_port_free(parse_engine(f"nvflare+grpc://localhost:{port}"))
    check_port_free(parse_engine(f"nvflare+grpc://localhost:{port}"))


@pytest.mark.parametrize("order", ["", "../../x", "0" * 31, "0" * 33, "0" * 31 + "G", "0" * 32 + "\n"])
def test_a_job_cannot_lead_the_controller_elsewhere(order: str) -> None:
    with pytest.raises(ConfigError, match="is not 32 hex digits"):
        reports.check_order_name(order)


@pytest.mark.parametrize(
    "error",
    [
        RoundAborted(2, 3),
        CohortExhausted(2, 1, 3),
        BudgetExhausted(1.5, 2.5, 2.0, "local"),
        ConfigError("plan.toml", "rounds", "too many"),
        TransportError("silo-1", "away"),
        BadSignature("silo-1", "does not verify"),
        LocalProtocolError("out of order"),
        SharesRejected(("silo-1", "silo-2")),
        MissingExtra("nvflare", "absent"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_back_as_what_they_were(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "job.jsonl"
    reports.write_line(path, reports.failed(error))
    (line,) = reports.Tail(path).lines()
    assert isinstance(line, reports.Failed)
    back = reports.error_of(line)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)


def test_an_error_that_is_not_ours_comes_back_by_its_type_only() -> None:
    line = reports.failed(KeyError("a private record"))
    assert line == reports.Crashed(error="KeyError")
    assert "private" not in str(reports.error_of(reports.Crashed(error="KeyError")))


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "job.jsonl"
    tail = reports.Tail(path)
    assert list(tail.lines()) == []
    reports.write_line(path, reports.Told(text="one"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:9])
    assert list(tail.lines()) == [reports.Told(text="one")]
    assert list(tail.lines()) == []
    path.write_bytes(whole + whole)
    assert list(tail.lines()) == [reports.Told(text="one")]


@pytest.mark.parametrize(
    "line", [b"{}", b'{"kind":"obeyed"}', b'{"kind":"told","text":"a","more":1}', b"\xff"]
)
def test_a_line_of_an_unknown_kind_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "job.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(TransportError, match=r"job\.jsonl has a line"):
        list(reports.Tail(path).lines())
