"""Two network namespaces of one machine, as two machines with a link of a chosen rate and delay between them.

The rate is limited by the kernel's token bucket filter (tc's tbf) on both ends of a pair of virtual devices. A delay
needs a relay: each end is then a TUN device, and a process passes the packets on when their time has come, since tc's
netem is not in every kernel. Packets have up to 9,000 bytes, 60,000 with a delay. It needs Linux, root, and the
programs ip and tc.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

_NAMES = (f"minivit-{os.getpid()}-1", f"minivit-{os.getpid()}-2")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
_MTU, _RELAYED_MTU = 9000, 60000  # bytes of a packet: the relay has some 20 microseconds of work for each
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h

# in the place of ssh, by which mpiexec starts its part on another machine: options, host, command
_LAUNCHER = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
host=$1; shift
exec ip netns exec PREFIX${host##*.} bash -c "$*"
"""


def missing() -> str:
    """What this machine lacks, in words; empty if nothing."""
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"the program {program} is missing (iproute2)"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    made = subprocess.run(["ip", "netns", "add", _NAMES[0]], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", _NAMES[0]], check=False)
    return ""


@contextlib.contextmanager
def shaped_link(gbits: float, delay: float, mpiexec: str) -> Iterator[list[str]]:
    """Make the link; yields the beginning of a command that starts one process of a program in each namespace.

    Args:
        gbits: the rate in each direction, in 10^9 bits a second.
        delay: of each packet, in seconds, added to the machine's own.
        mpiexec: where it is.
    """
    relay = None
    with tempfile.TemporaryDirectory() as folder:
        launcher = Path(folder) / "launcher"
        launcher.write_text(_LAUNCHER.replace("PREFIX", _NAMES[0][:-1]))
        launcher.chmod(0o755)
        try:
            for name in _NAMES:
                _run("ip", "netns", "add", name)
            relay = _devices(delay)
            for name, address in zip(_NAMES, ADDRESSES):
                _inside(name, "ip", "link", "set", "lo", "up")
                _inside(name, "ip", "address", "add", f"{address}/24", "dev", "link0")
                _inside(name, "ip", "link", "set", "link0", "mtu", str(_RELAYED_MTU if delay else _MTU), "up")
                shape = ["rate", f"{gbits}gbit", "burst", "512kb", "latency", "100ms"]
                _inside(name, "tc", "qdisc", "add", "dev", "link0", "root", "tbf", *shape)
            for name in _NAMES:
                _wait_until_up(name)
            # without UCX_TLS MPI would take shared memory, since both ends are one machine
            yield [
                "ip", "netns", "exec", _NAMES[0], "env", "UCX_TLS=tcp,self", "UCX_NET_DEVICES=link0", mpiexec,
                "-launcher", "ssh", "-launcher-exec", str(launcher), "-hosts", ",".join(ADDRESSES), "-ppn", "1", "-n",
                "2",
            ]  # fmt: skip
        finally:
            if relay is not None:
                os.kill(relay, signal.SIGKILL)
                os.waitpid(relay, 0)
            for name in _NAMES:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _inside(name: str, *command: str) -> None:
    _run("ip", "netns", "exec", name, *command)


def _wait_until_up(name: str) -> None:
    """A pair of devices is up some time after both ends are."""
    for _ in range(100):
        shown = subprocess.run(["ip", "-n", name, "link", "show", "link0"], capture_output=True, text=True, check=True)
        if "LOWER_UP" in shown.stdout and "state DOWN" not in shown.stdout:
            return
        time.sleep(0.05)
    raise RuntimeError(f"link0 of namespace {name} does not come up: {shown.stdout}")


def _devices(delay: float) -> int | None:
    """Make link0 in both namespaces; returns the process of a relay, if one is needed."""
    if delay == 0:
        ends = ["link0", "netns", _NAMES[0], "type", "veth", "peer", "name", "link0", "netns", _NAMES[1]]
        _run("ip", "link", "add", *ends)
        return None
    ready, made = os.pipe()
    relay = os.fork()
    if relay == 0:
        try:
            ends = [_tun(name) for name in _NAMES]
            os.write(made, b"x")
            _relay(ends, delay)
        finally:
            os._exit(1)
    os.close(made)
    if not os.read(ready, 1):
        raise RuntimeError("the relay could not make its devices: /dev/net/tun is missing")
    os.close(ready)
    return relay


def _tun(name: str) -> int:
    """A TUN device in a namespace, into which this process moves."""
    with open(f"/run/netns/{name}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {name}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"link0", _IFF_TUN | _IFF_NO_PI))
    return device


def _relay(ends: list[int], delay: float) -> None:
    """Pass packets on, each after the delay; those of one direction stay in order."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
        for end in select.select(ends, [], [], pause)[0]:
            with contextlib.suppress(BlockingIOError):
                for _ in range(16):
                    packet = os.read(end, 65536)
                    waiting.append((time.monotonic() + delay, ends[1 - ends.index(end)], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, end, packet = waiting.popleft()
            with contextlib.suppress(OSError):  # a full queue, or an end that is not up yet: TCP sends it again
                os.write(end, packet)
