"""The coordinator's rounds as a FLARE job: the same ``CoordinatorService``, with tasks for a channel.

Runs in a process that FLARE's server starts for the job. Deadlines are ours: an exchange ends when all have
answered or its time is over, whatever FLARE believes about who is alive.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Mapping
from pathlib import Path

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from cachefl_secure.errors import TransportError
from cachefl_secure.names import COORDINATOR, SiloId
from cachefl_secure.transport.flare import reports
from cachefl_secure.transport.flare.kits import CONTENT, PHASE, POLL_SECONDS, SERVER, TASK
from cachefl_secure.transport.flare.ordered import carry_out

_MARGIN_SECONDS = 60
"""FLARE's own timeout of a task comes this long after ours, so that it never decides."""
_ABORT_CHECK_SECONDS = 0.5


class TaskChannel:
    """``ports.CoordinatorChannel`` over one task for each silo and exchange."""

    def __init__(self, controller: Controller, context: FLContext, abort: Signal) -> None:
        self._controller, self._context, self._abort = controller, context, abort
        self._here = {client.name for client in context.get_engine().get_clients()}

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        """See ``ports.CoordinatorChannel``. Silos that were not connected when the job began do not answer.

        Raises:
            TransportError: FLARE ends the job.
        """
        until = time.monotonic() + deadline_seconds
        # A queue of its own for each exchange, so that a late answer is never taken for another.
        answers: queue.SimpleQueue[tuple[SiloId, bytes | None]] = queue.SimpleQueue()
        tasks = {
            silo: self._send(phase, silo, content, deadline_seconds, answers)
            for silo, content in requests.items()
            if silo in self._here
        }
        received: dict[SiloId, bytes] = {}
        waiting = set(tasks)
        try:
            while waiting and (left := until - time.monotonic()) > 0:
                if self._abort.triggered:
                    raise TransportError(COORDINATOR, "FLARE ended the job; its log says why")
                with contextlib.suppress(queue.Empty):
                    silo, content = answers.get(timeout=min(left, _ABORT_CHECK_SECONDS))
                    waiting.discard(silo)
                    if content is not None:
                        received[silo] = content
        finally:
            for silo in waiting:
                self._controller.cancel_task(tasks[silo])
        return received

    def _send(
        self,
        phase: str,
        silo: SiloId,
        content: bytes,
        deadline_seconds: float,
        answers: queue.SimpleQueue[tuple[SiloId, bytes | None]],
    ) -> Task:
        def on_result(client_task: ClientTask, fl_ctx: FLContext) -> None:
            result, client_task.result = client_task.result, None
            answers.put((silo, _answer(result)))

        request = Shareable()
        request[PHASE], request[CONTENT] = phase, content
        timeout = int(deadline_seconds) + _MARGIN_SECONDS
        task = Task(name=TASK, data=request, timeout=timeout, result_received_cb=on_result)
        self._controller.send(task, self._context, targets=[silo])
        return task


def _answer(result: object) -> bytes | None:
    if not isinstance(result, Shareable) or result.get_return_code() != ReturnCode.OK:
        return None
    content = result.get(CONTENT)
    return content if isinstance(content, bytes) else None


class RoundsController(Controller):  # type: ignore[misc]
    """The only class that a job may name at the server. ``order`` is a folder of the coordinator's."""

    def __init__(self, order: str) -> None:
        super().__init__(task_check_period=POLL_SECONDS)
        self._order = reports.check_order_name(order)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """FLARE asks for one."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """FLARE asks for one."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """An answer after its deadline: nobody waits for it."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """All of the job. How it ends stands in the order's folder; to FLARE it always ends well."""
        carry_out(coordinator_directory(fl_ctx), self._order, TaskChannel(self, fl_ctx, abort_signal))


def coordinator_directory(context: FLContext) -> Path:
    """The directory below which the server's workspace lies."""
    workspace = Path(context.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir())
    return workspace.resolve().parents[len(Path(SERVER).parts) - 1]
