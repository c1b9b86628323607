"""Ctrl-C strikes where a run waits, and is kept everywhere else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from vmemu.interrupts import Interrupts


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals strike the main thread only")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_it_strikes_at_once_where_it_is_allowed():
    reached = []

    def run() -> None:
        with Interrupts() as interrupts, interrupts.allowed():
            ctrl_c()
            reached.append("behind")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == []


def test_elsewhere_it_is_kept_until_it_is_allowed():
    reached = []

    def run() -> None:
        with Interrupts() as interrupts:
            ctrl_c()
            reached.append("behind")
            with interrupts.allowed():
                reached.append("inside")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == ["behind"]


def test_what_is_kept_to_the_end_strikes_there():
    reached = []

    def run() -> None:
        with Interrupts():
            ctrl_c()
            reached.append("behind")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == ["behind"]


def test_what_is_kept_can_be_taken_once():
    with Interrupts() as interrupts:
        ctrl_c()
        assert interrupts.take()
        assert not interrupts.take()


def test_after_it_has_struck_nothing_strikes_the_way_out():
    with Interrupts() as interrupts:
        try:
            with interrupts.allowed():
                ctrl_c()
        except KeyboardInterrupt:
            ctrl_c()
            ctrl_c()
        assert interrupts.take()


def test_a_handler_that_does_not_raise_is_called_and_the_wait_goes_on():
    called = []
    signal.signal(signal.SIGINT, lambda *_: called.append("handler"))
    with Interrupts() as interrupts, interrupts.allowed():
        ctrl_c()
        ctrl_c()
        called.append("behind")
    assert called == ["handler", "handler", "behind"]


def test_the_handler_of_before_comes_back():
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts, interrupts.allowed():
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def run() -> None:
        with Interrupts() as interrupts, interrupts.allowed():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
