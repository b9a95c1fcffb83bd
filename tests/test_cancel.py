"""A cancel scope: what cancelling it wakes and cancels."""

from __future__ import annotations

import threading

import pytest

from dlpool.cancel import CancelScope
from dlpool.errors import Cancelled, DlpoolError


class Member:
    """A member that records the errors with which it is cancelled."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def cancel(self, error: DlpoolError) -> None:
        self.errors.append(str(error))


def test_cancelling_cancels_the_members_that_are_present() -> None:
    scope, present, gone = CancelScope(), Member(), Member()
    scope.add(present)
    scope.add(gone)
    scope.discard(gone)
    assert scope.members() == (present,)
    scope.cancel(Cancelled("stop"))
    assert (present.errors, gone.errors) == (["stop"], [])


def test_the_first_error_stands() -> None:
    scope, member = CancelScope(), Member()
    scope.add(member)
    scope.cancel(Cancelled("first"))
    scope.cancel(Cancelled("second"))
    assert (str(scope.error), member.errors) == ("first", ["first", "first"])
    with pytest.raises(Cancelled, match="first"):
        scope.raise_if_cancelled()


def test_a_cancelled_scope_takes_no_members() -> None:
    scope, member = CancelScope(), Member()
    scope.cancel(Cancelled("stop"))
    with pytest.raises(Cancelled, match="stop"):
        scope.add(member)
    assert scope.members() == ()


def test_scopes_nest() -> None:
    outer, inner = CancelScope(), CancelScope()
    outer.add(inner)
    outer.cancel(Cancelled("stop"))
    assert str(inner.error) == "stop"


def test_cancelling_an_inner_scope_leaves_the_outer_one_alone() -> None:
    outer, inner = CancelScope(), CancelScope()
    outer.add(inner)
    inner.cancel(Cancelled("stop"))
    assert outer.error is None


def test_a_sealed_scope_is_not_cancelled() -> None:
    scope, member = CancelScope(), Member()
    scope.add(member)
    scope.seal()
    scope.cancel(Cancelled("too late"))
    scope.raise_if_cancelled()
    assert member.errors == []


def test_a_cancelled_scope_cannot_be_sealed() -> None:
    scope = CancelScope()
    scope.cancel(Cancelled("stop"))
    with pytest.raises(Cancelled, match="stop"):
        scope.seal()


def test_cancelling_wakes_a_thread_that_sleeps() -> None:
    scope, raised = CancelScope(), []

    def sleep() -> None:
        try:
            scope.sleep(60.0)
        except Cancelled as error:
            raised.append(str(error))

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    scope.cancel(Cancelled("stop"))
    thread.join(10.0)
    assert raised == ["stop"]


def test_a_sleep_that_nothing_cancels_ends_in_time() -> None:
    scope = CancelScope()
    scope.sleep(0.001)
    scope.sleep(0.0)
    assert repr(scope) == "<CancelScope 0 members >"
