"""A silo's answers: the only class that a job may load at a site.

Which directory it opens follows from where the site's own files lie, never from the job. What went wrong at the
silo is written to a file of the silo's, for its operator, and not said to FLARE.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from cachefl_secure.errors import CacheflError
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.transport.flare import reports
from cachefl_secure.transport.flare.kits import CONTENT, PHASE, SITE, SITE_REPORTS, TASK
from cachefl_secure.transport.flare.locking import patient_lock
from cachefl_secure.transport.serving import Watch


class SiloExecutor(Executor):  # type: ignore[misc]
    """Opens the silo with the first task, under its lock, and answers with ``SiloService.handle``."""

    def __init__(self) -> None:
        super().__init__()
        self._held = contextlib.ExitStack()
        self._watch: Watch | None = None
        self._said = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Gives the directory back when the run ends."""
        if event_type == EventType.END_RUN:
            self._watch = None
            self._held.close()

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """One request, one reply. Anything but a reply of the silo's is a return code without a word."""
        phase, content = shareable.get(PHASE), shareable.get(CONTENT)
        if task_name != TASK or not isinstance(phase, str) or not isinstance(content, bytes):
            return make_reply(ReturnCode.BAD_TASK_DATA)
        site = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir()).resolve()
        try:
            watch = self._open(site)
        except Exception as error:  # the operator is told why; the coordinator sees that there is no answer
            self._tell(site, str(error) if isinstance(error, CacheflError) else type(error).__name__)
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        reply = Shareable()
        reply[CONTENT] = watch.handle(phase, content)
        return reply

    def _open(self, site: Path) -> Watch:
        if self._watch is None:
            files = SiloFiles.open(site.parents[len(Path(SITE).parts) - 1])
            with contextlib.ExitStack() as opened:
                opened.enter_context(patient_lock(files.state))
                ledger = opened.enter_context(files.ledger())
                self._watch = Watch(
                    SiloService(files, ledger), files, ledger, lambda sentence: self._tell(site, sentence)
                )
                self._held = opened.pop_all()
        return self._watch

    def _tell(self, site: Path, sentence: str) -> None:
        if sentence != self._said:  # a directory in use is in use for every task
            self._said = sentence
            with contextlib.suppress(OSError):
                reports.write_line(site / SITE_REPORTS, reports.Told(text=sentence))
