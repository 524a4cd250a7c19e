"""What of a kernel's log is a fault."""

from __future__ import annotations

import os

import pytest

from softcard.guest.log import KernelLog


def problems(line: str) -> list[str]:
    read, write = os.pipe()
    os.write(write, f"[    1.000000] {line}\n".encode())
    os.close(write)
    log = KernelLog(read)
    log.join(10)
    return log.problems()


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: CPU: 1 PID: 7 at kernel/irq/manage.c:790 enable_irq+0x4c/0xa0",
        "Oops: Oops: 0000 [#1] PREEMPT SMP KASAN NOPTI",
        "kernel BUG at mm/slub.c:442!",
        "BUG kmalloc-64 (Not tainted): Poison overwritten",
        "BUG: KASAN: slab-use-after-free in softcard_put+0x1c/0x30 [softcard]",
        "UBSAN: array-index-out-of-bounds in drivers/a.c:1:2",
        "WARNING: possible circular locking dependency detected",
        "WARNING: possible recursive locking detected",
        "WARNING: possible irq lock inversion dependency detected",
        "WARNING: inconsistent lock state",
        "WARNING: bad unlock balance detected!",
        "WARNING: suspicious RCU usage",
        "[ BUG: Invalid wait context ]",
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
        "INFO: trying to register non-static key.",
        "ODEBUG: free active (active state 0) object: ffff8880 object type: work_struct",
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python3:99]",
        "INFO: task kworker/0:1:10 blocked for more than 120 seconds.",
    ],
)
def test_reports_of_the_kernels_checks_are_problems(line: str) -> None:
    assert problems(line)


@pytest.mark.parametrize(
    "line",
    [
        "kasan: KernelAddressSanitizer initialized (generic)",
        "Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
        "kmemleak: Kernel memory leak detector initialized (mem pool available: 15670)",
        "DMA-API: preallocated 65536 debug entries",
        "ODEBUG: selftest passed",
        "softcard 10000: completion timeout: function 0, BAR 0 + 0x0",
    ],
)
def test_what_a_kernel_says_of_its_checks_is_none(line: str) -> None:
    assert not problems(line)
