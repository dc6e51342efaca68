"""Runs a command that dies with the process that asked for it, also when that one is killed with -9.

A small process of its own, because the kernel's parent-death signal follows the *thread* that forked (a broker
started from a short-lived thread would be killed with it) and exists on Linux only. The asker holds the other end
of this process' stdin: end of file there, or another parent, ends the command. Run as a script, without importing
penstock: `python leash.py keep|release COMMAND…` prints the command's pid; `release` lets it live on its own.
"""

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> int:
    mode, command = sys.argv[1], sys.argv[2:]
    asker, leash = os.getppid(), os.getpid()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = os.fork()
    if child == 0:
        _become(command, leash, mode)
    os.write(1, f"{child}\n".encode())
    if mode == "release":
        return 0
    while True:
        readable, _, _ = select.select([0, woken], [], [], 1.0)
        if woken in readable:
            os.read(woken, 512)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code  # as shells have it: 137 is kill -9
        # a fork of the asker may still hold the pipe open, hence the second look
        if 0 in readable or os.getppid() != asker:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 0


def _become(command: list[str], leash: int, mode: str) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if mode == "release":
        os.setsid()
    elif sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != leash:
            os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    try:
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    sys.exit(main())
