"""What Redis answers to the verbs of operators and clients, for who asked. Pure."""

from __future__ import annotations

from dlpool.errors import DlpoolError, NoSuchJob

DONE = ("OK", "ASKED")  # ASKED: its supervisor does it within two seconds
CANNOT = {
    "following": "it ends with the job that does the same",
    "GONE": "the record is not there any more",
    "EMPTY": "the record holds no job that could be run",
}


class NotPossible(DlpoolError, label="not_possible"):
    """The job, record or node is not in a state that allows it."""


class NoSuchNode(DlpoolError, label="no_such_node"):
    """No node of that id is there, nor known of."""


def unknown_job_error(job_id: str) -> NoSuchJob:
    """What to raise for a job that Redis does not know."""
    return NoSuchJob(
        f"no job {job_id[:80]!r} is known: it ended long ago, or still lies in the "
        f"intake list"
    )


def error_of_reply(verb: str, name: str, reply: str) -> DlpoolError | None:
    """What to raise for the answer to ``verb`` on the job or record ``name``; None if
    it is done."""
    if reply in DONE:
        return None
    if reply == "NONE":
        return unknown_job_error(name)
    return NotPossible(f"cannot {verb} {name}: {CANNOT.get(reply) or f'it is {reply}'}")
