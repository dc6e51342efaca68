"""Starts workers by forking a process that has imported already what they all import: a worker that was killed is back
without the second or two that Python needs for its libraries, and all workers share one copy of them.

A process of its own with a single thread, because only such a one can be forked safely; forks.py asks it. A line on
stdin is a command; lines on stdout say which pid it got, and later with which code that pid ended. It ends with whoever
holds the other end of its stdin, and takes its children along (compare leash.py, which is this for one command).
"""

import ctypes
import gc
import json
import os
import runpy
import select
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import setproctitle

PRELOADED = ("penstock.cli.run", "penstock.worker", "penstock.windows.kernel")
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's jemalloc
    "SPT_NOENV": "1",  # a worker's command line takes the place of ROOM, not that of the environment
}
"""Of this process, so that its libraries start no thread. A worker gets an environment of its own."""
ROOM = "." * 240
"""This process' last argument; ``ps`` shows a worker's command in its place."""

_SET_PDEATHSIG = 1


def main() -> None:
    for name in PRELOADED:
        import_module(name)
    setproctitle.getproctitle()  # finds the place of the command line while environ is as it was at the start
    gc.collect()
    gc.freeze()
    alone = _is_alone()
    command = serve()
    become(command["argv"], command["log"], command["environ"], alone)


def serve() -> dict[str, Any]:
    """Serves until stdin ends. Returns in each child, with the command that it is to become."""
    server, asker = os.getpid(), os.getppid()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    begun, ended = b"", False
    while not ended and os.getppid() == asker:  # a fork of the asker may still hold the pipe open
        readable, _, _ = select.select([0, woken], [], [], 1.0)
        if woken in readable:
            os.read(woken, 512)
        if 0 in readable:
            read = os.read(0, 1 << 16)
            ended = not read
            *lines, begun = (begun + read).split(b"\n")
            for line in lines:
                command: dict[str, Any] = json.loads(line)
                child = os.fork()
                if child == 0:
                    _let_go(server, woken, wake)
                    return command
                children.add(child)
                _say({"started": child})
        for child in list(children):
            gone, status = os.waitpid(child, os.WNOHANG)
            if gone:
                children.remove(child)
                code = os.waitstatus_to_exitcode(status)
                _say({"ended": child, "code": code if code >= 0 else 128 - code})  # as shells have it: 137 is kill -9
    for child in children:
        os.kill(child, signal.SIGKILL)
    os._exit(0)


def become(argv: list[str], log: str, environ: dict[str, str], alone: bool) -> None:
    """A Python module is run here with what is loaded, where the server was ``alone``; anything else is executed."""
    nothing, written = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for here, there in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(here, there)
    os.environ.clear()
    os.environ.update(environ)
    if argv[:2] == [sys.executable, "-m"] and alone:
        setproctitle.setproctitle(" ".join(argv))
        sys.argv = argv[2:]
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
        return
    try:
        os.execve(argv[0], argv, environ)
    except OSError as error:
        sys.exit(f"cannot run {argv[0]}: {error}")


def _let_go(server: int, *ours: int) -> None:
    """Of what makes the server a server."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in ours:
        os.close(each)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)


def _say(what: dict[str, int]) -> None:
    try:
        os.write(1, json.dumps(what).encode() + b"\n")
    except BrokenPipeError:
        return  # the asker is gone, which is seen next


def _is_alone() -> bool:
    """Whether this process has a single thread; where the system does not tell, it may not."""
    threads = Path("/proc/self/task")
    return threads.exists() and len(list(threads.iterdir())) == 1


if __name__ == "__main__":
    main()
