"""A party's directory: atomic, private, one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.state_dir import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    made = StateDir.create(tmp_path / "party")
    made.finish()
    return made


@pytest.mark.claim("C17")
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_no_litter(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    state.write("notes", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(ConfigError, match="No space left"):
            state.write("notes", b"new and longer")
    assert state.read("notes") == b"old"
    assert sorted(path.name for path in state.root.iterdir()) == ["keys", "notes"]


@pytest.mark.claim("C15")
def test_a_key_that_others_can_read_is_refused(state: StateDir) -> None:
    state.path("keys/signing.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        state.signing_key()


def test_a_truncated_key_is_refused_without_showing_it(state: StateDir) -> None:
    key = state.path("keys/signing.key")
    content = key.read_bytes()
    key.write_bytes(content[:31])
    with pytest.raises(ConfigError, match="31 bytes") as refused:
        state.signing_key()
    assert content[:8].hex() not in str(refused.value)


@pytest.mark.claim("C18")
def test_a_second_process_is_told_that_the_directory_is_in_use(state: StateDir) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from cachefl_secure.errors import ConfigError\n"
        "from cachefl_secure.federation.state_dir import StateDir\n"
        "try:\n"
        "    with StateDir(Path(sys.argv[1])).lock(): print('got it')\n"
        "except ConfigError as error: print(error.reason)\n"
    )

    def other() -> str:
        ran = subprocess.run(
            [sys.executable, "-c", script, str(state.root)], capture_output=True, text=True, check=True
        )
        return ran.stdout.strip()

    with state.lock():
        assert other() == "another cachefl-secure process works here"
    assert other() == "got it"


def test_an_occupied_directory_is_refused_and_an_unfinished_one_taken_up(tmp_path: Path) -> None:
    root = tmp_path / "party"
    first = StateDir.create(root)
    again = StateDir.create(root)  # never finished: the same keys
    assert again.signing_key() == first.signing_key()
    again.finish()
    with pytest.raises(ConfigError, match="not empty"):
        StateDir.create(root)


def test_a_link_is_no_directory_to_work_in(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="not a directory"):
        StateDir.create(tmp_path / "link")
