"""The jobs of a supervisor on their way through its workers: the part of the main thread that moves them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from dlpool.errors import InternalError
from dlpool.jobs.transitions import Claimed, Finish
from dlpool.observe.log import Logger
from dlpool.observe.summary import Summary
from dlpool.service.cleaning import Cleaner
from dlpool.service.dealing import Waiting, deal
from dlpool.service.doorman import Doorman
from dlpool.service.handle import Handle
from dlpool.service.hooks.hooks import Hooks
from dlpool.service.hosts import authority_of
from dlpool.service.joblog import DISOWNED, about, log_end, trace_of
from dlpool.service.ledger import Held, Ledger, is_told, job_frame, leftover
from dlpool.service.monitor.meter import Meter
from dlpool.service.pool import WorkerPool
from dlpool.service.queue.messages import Placed, Recorded
from dlpool.service.queue.recording import Recorder
from dlpool.service.slots import is_refusal
from dlpool.service.verdict import Judge
from dlpool.service.wire.frames import (
    CancelFrame,
    CleanedFrame,
    EndedFrame,
    FinishingFrame,
    Frame,
    HelloFrame,
    HoldFrame,
    LostFrame,
    PublishFrame,
    StatusFrame,
    VerifiedFrame,
)

ENDS = ("success", "failed", "cancelled")
MALFORMED = 20  # of what is no job that are logged in a minute: whoever pushes it must not fill the log


class Crew:
    """Ledger, workers and recorder as one. Used by the main thread only; each step may be repeated."""

    def __init__(
        self,
        ledger: Ledger,
        pool: WorkerPool,
        recorder: Recorder,
        judge: Judge,
        cleaner: Cleaner,
        log: Logger,
        hooks: Hooks,
        doorman: Doorman,
        meter: Meter,
        on_fault: Callable[[], None],
    ) -> None:
        """``on_fault`` is called when a job has met a fault of the node."""
        self.judge = judge
        self.has_news = True  # something that pool and capacity depend on
        self._ledger = ledger
        self._pool = pool
        self._recorder = recorder
        self._log = log
        self._cleaner = cleaner
        self._hooks = hooks
        self._doorman = doorman
        self._meter = meter
        self._malformed = Summary(MALFORMED)
        self._on_fault = on_fault

    # --- in ---

    def take_in(self, claimed: Claimed, leased_until: float) -> None:
        """A job was claimed: run it, or say why not."""
        held = Held(claimed, leased_until, trace_id=trace_of(claimed.ticket.id, None))
        with self._each_alone(held):
            held.job, instead = self.judge.admit(claimed)
            held.trace_id = trace_of(claimed.ticket.id, held.job)
            held.authority = authority_of(held.job.url) if held.job is not None else ""
            if not self._ledger.add(held):
                return
            if instead is not None:
                self._end(held, instead)
            else:
                self._bring_to_door(held)
        self.has_news = self.has_news or claimed.crashes > 0  # it may want a worker of its own

    @contextmanager
    def _each_alone(self, held: Held) -> Iterator[None]:
        """What nobody foresaw while a job is taken in fails that job, and nothing else."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the service would end with it, and the next one again
            self._log.error("job_broke", error=error, **about(held))
            if not self._ledger.add(held) and self._ledger.get(str(held.ticket)) is not held:
                return  # it runs already, and ends by itself
            self._ledger.mark_ending(held)
            ending = self.judge.broken(held.claimed, InternalError.of(error))
            self._recorder.end(replace(ending, host=held.host, trace_id=held.trace_id))

    def _bring_to_door(self, held: Held) -> None:
        assert held.job is not None
        instead = self._doorman.turned_away(held, held.job, self._ledger.all)
        if instead is not None:
            self._end(held, instead)

    def summarize(self, *, now: bool = False) -> None:
        """Log how many malformed jobs had no line of their own, of each minute that is over; ``now``: of all."""
        for _, count in self._malformed.ended(now=now):
            self._log.warning("jobs_malformed", count=count)

    def deal(self) -> None:
        """Give waiting jobs to workers with free slots."""
        self.summarize()
        waiting = [one for one in self._ledger.all() if one.worker is None and one.is_idle]
        wanted = [Waiting(str(one.ticket), self.judge.must_run_alone(one.claimed)) for one in waiting]
        for ticket, pid in deal(wanted, self._pool.seats()) if wanted else ():
            held, handle = self._ledger.get(ticket), self._pool.workers[pid]
            assert held is not None and held.job is not None
            try:
                handle.send(job_frame(held, held.job))
            except InternalError:
                message = "the job's URL, path and headers are too long together"
                self._end(held, self.judge.failed(held.claimed, held.job.url, "bad_job", message))
                continue
            self._cleaner.begin(leftover(held, held.job, None, has_failed=True))
            held.worker, held.dealt_at = pid, time.monotonic()
            handle.jobs.add(ticket)
            self._pool.note_taken(handle)

    def suspects(self) -> int:
        """How many jobs that must run alone are held."""
        return sum(not one.is_ending and self.judge.must_run_alone(one.claimed) for one in self._ledger.all())

    # --- from workers ---

    def hear(self, handle: Handle) -> None:
        """Take what a worker has sent."""
        for frame in handle.frames():
            self._heard(handle, frame)

    def bury(self, handle: Handle, how: str) -> None:
        """A worker has died: its last words first, then its jobs go back at once."""
        self.hear(handle)
        for ticket in sorted(handle.jobs):
            held = self._ledger.get(ticket)
            if held is None or held.is_ending:
                continue
            if held.is_lost:
                self._ledger.drop(ticket)
            elif handle.culprit not in (None, ticket):
                self._end(held, self.judge.interrupted(held.claimed, how))
            elif held.job is not None:
                self._end(held, self.judge.died(held.claimed, held.job.url, how))
        handle.jobs.clear()
        handle.finishing.clear()
        self._cleaner.bury(handle)

    def _heard(self, handle: Handle, frame: Frame) -> None:
        if isinstance(frame, HelloFrame):
            self._pool.came_up(handle)
            self.has_news = True
        elif isinstance(frame, StatusFrame):
            self._meter.counted(handle.counted.new(frame.counters))
            for ticket, progress in frame.jobs.items():
                if (held := self._ledger.get(ticket)) is not None:
                    held.progress = progress
                    held.missing = frame.missing.get(ticket, 0)
                    held.is_kept = ticket not in frame.whole
        elif isinstance(frame, VerifiedFrame):
            self._verified(handle, frame.ticket)
        elif isinstance(frame, EndedFrame):
            handle.jobs.discard(frame.ticket)
            handle.finishing.discard(frame.ticket)
            self._ended(frame)
        elif isinstance(frame, FinishingFrame):
            self._finishing(handle, frame.ticket)
        elif isinstance(frame, HoldFrame):
            self._doorman.hold(frame.host, frame.seconds, is_ours=True)
        elif isinstance(frame, CleanedFrame):
            self._cleaner.cleaned(handle, frame.job_ids)

    def _verified(self, handle: Handle, ticket: str) -> None:
        held = self._ledger.get(ticket)
        if held is None or held.is_lost:
            handle.send(LostFrame(ticket))
        else:
            self._recorder.ask(held.ticket)

    def _finishing(self, handle: Handle, ticket: str) -> None:
        held = self._ledger.get(ticket)
        if held is not None and ticket in handle.jobs and not handle.is_alone:
            handle.finishing.add(ticket)
            self._ledger.mark_finishing(held)

    def _ended(self, frame: EndedFrame) -> None:
        held = self._ledger.get(frame.ticket)
        if held is None or held.job is None or held.is_ending:
            return
        self._meter.ran(frame, time.monotonic() - held.dealt_at)
        if frame.path is not None and not is_told(frame.path, held.job.save_path):
            self._cleaner.begin(leftover(held, held.job, frame.path, has_failed=True))
        if is_refusal(frame):
            self._doorman.refused(held, self._ledger.all)
        ending = None if held.is_lost else self.judge.ended(held.claimed, held.job, frame, held.verb, held.yielding)
        if frame.ending == "node_fault":
            self._on_fault()
            self.has_news = True
            self._log.warning("node_fault", label=frame.label, reason=frame.message, **about(held))
        if ending is None:
            self._log.warning("job_lost", **about(held))
            self._meter.lost()
            self._ledger.drop(frame.ticket)
            return
        held.path, held.leaves_state, held.stack = frame.path, frame.leaves_state, frame.stack
        self._end(held, ending)

    def _end(self, held: Held, ending: Finish) -> None:
        host = ending.host if ending.outcome == "park" else self._left(held)
        ending = replace(ending, host=host, trace_id=held.trace_id)
        self._ledger.mark_ending(held)
        self._recorder.end(ending)

    def _left(self, held: Held) -> str:
        """The host that has room again; how the job ended stands, whatever goes wrong with that."""
        try:
            return self._doorman.left(held)
        except Exception as error:  # noqa: BLE001 - as above
            self._log.error("job_broke", error=error, **about(held))
            return held.host

    # --- from Redis ---

    def stands(self, ticket: str, *, is_ours: bool) -> None:
        """Redis has said whether a verified job may be published."""
        if not is_ours:
            self.lose(ticket)
        elif (handle := self._worker_of(ticket)) is not None:
            handle.send(PublishFrame(ticket))

    def placed(self, message: Placed) -> None:
        """Redis has said whether the host of a job has a slot for it."""
        held = self._ledger.get(message.ticket)
        if held is not None and held.is_at_door and not held.is_ending:
            instead = self._doorman.answered(held, message.place)
            if instead is not None:
                self._end(held, instead)

    def lose(self, ticket: str) -> None:
        """The job is another's by now: it ends here without a record."""
        held = self._ledger.get(ticket)
        if held is None or held.is_ending or held.is_lost:
            return
        held.is_lost = True
        handle = self._worker_of(ticket)
        if handle is None:
            self._ledger.drop(ticket)
        else:
            handle.send(LostFrame(ticket))

    def stop(self, ticket: str, verb: str) -> None:
        """An operator wants a job cancelled or paused; may be called again and again."""
        held = self._ledger.get(ticket)
        if held is None or held.is_ending or held.is_lost or held.verb in (verb, "cancel") or held.job is None:
            return
        held.verb = verb
        handle = self._worker_of(ticket)
        if handle is not None:
            handle.send(CancelFrame(ticket, f"an operator asked to {verb} it"))
        elif held.worker is None:
            self._end(held, self.judge.stopped(held.claimed, held.job.url, verb))

    def give_way(self, ticket: str, reason: str) -> None:
        """A job is to give its slot to others: it is checkpointed and goes back to the queue."""
        held, handle = self._ledger.get(ticket), self._worker_of(ticket)
        if held is None or handle is None or held.is_ending or held.is_lost or held.verb or held.yielding:
            return
        held.yielding = reason
        self._log.info("job_yielding", label=reason, **about(held))
        handle.send(CancelFrame(ticket, "jobs of others wait for its slot"))

    def recorded(self, message: Recorded) -> None:
        """Redis knows how a job ended."""
        ending, ticket = message.ending, str(message.ending.ticket)
        held = self._ledger.get(ticket)
        if held is not None and message.reply == "LEADS":
            self._ledger.mark_ending(held, is_ending=False)
            with self._each_alone(held):
                self._bring_to_door(held)
            return
        self._meter.ended(ending, message.reply)
        if held is None:  # an earlier start had spooled it
            return
        self._ledger.drop(ticket)
        if held.job is not None or self._malformed.admits("malformed"):
            log_end(self._log, held, ending, message.reply)
        if message.reply not in DISOWNED:
            self._hooks.ended(held, ending)
        if held.job is not None and ending.outcome in ENDS and message.reply != "FENCED":
            ended = leftover(held, held.job, held.path, has_failed=ending.outcome != "success")
            if held.leaves_state or ended.has_failed:
                self._cleaner.leave([ended], held.worker or 0)
            else:
                self._cleaner.forget([ended])

    # --- the end ---

    def release_waiting(self, reason: str) -> None:
        """Give back what no worker has begun."""
        for held in self._ledger.all():
            if held.worker is None and not held.is_ending:
                self._end(held, Finish(held.ticket, "release", note={"label": "released", "message": reason}))

    def cancel_running(self, reason: str) -> None:
        """Have running jobs checkpointed and given back."""
        for held in self._ledger.all():
            handle = self._worker_of(str(held.ticket))
            if handle is not None and not held.is_ending:
                handle.send(CancelFrame(str(held.ticket), reason))

    def _worker_of(self, ticket: str) -> Handle | None:
        held = self._ledger.get(ticket)
        if held is None or held.worker is None:
            return None
        handle = self._pool.workers.get(held.worker)
        return handle if handle is not None and ticket in handle.jobs else None
