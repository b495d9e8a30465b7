"""What a process knows of a pool whose slots it passes on, where another thread or a fork comes between."""

from __future__ import annotations

import os
import signal
import threading
import time

from slotline.pools._passing import Passing


def test_a_child_that_is_forked_while_a_grant_is_noted_may_use_the_pool():
    passing, noting = Passing(), threading.Event()

    class Fence(int):
        def __gt__(self, other: int) -> bool:
            noting.set()
            time.sleep(0.2)
            return int(self) > other

    thread = threading.Thread(target=lambda: passing.granted(Fence(5), 0.0, 0.0, roomy=True))
    thread.start()
    assert noting.wait(30)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        os._exit(0 if passing.next_fence(0.0) else 1)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
