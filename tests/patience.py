"""Waiting for processes that tests start, on machines as busy as they like.

A limit on the whole time fails where a machine has other work to do, so the limit is on silence: a process that goes on
printing is never too slow, and one that hangs is ended.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: seconds without a line after which a process hangs; a line is due every few seconds on an idle machine
SILENCE = 280.0
TESTS = Path(__file__).parent


def meeting() -> dict[str, str]:
    """Environment of processes that train together: where they meet, and where the project and its tests are."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return {"MASTER_PORT": str(port), "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}


def run_two_ranks(script: str, arguments: Sequence[str], folder: Path) -> str:
    """What rank 0 of a script printed. Ends both ranks where one fails, which the other would wait for.

    Args:
        script: file that joins the run by its environment.
        arguments: of both.
        folder: their working directory, which gets their logs.
    """
    both = meeting() | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    return run_together(
        [[script, *arguments]] * 2,
        [folder / f"rank{rank}.log" for rank in range(2)],
        [both | {"LOCAL_RANK": str(rank), "RANK": str(rank)} for rank in range(2)],
        cwd=folder,
    )[0]


def run_together(
    commands: Sequence[Sequence[str]],
    logs: Sequence[Path],
    envs: Sequence[Mapping[str, str]],
    cwd: Path | None = None,
    silence: float = SILENCE,
) -> list[str]:
    """Run processes until all of them have ended, and end all of them where one fails or none prints any more.

    Args:
        commands: arguments of Python, one list per process.
        logs: files that get what the processes print.
        envs: added to the environment of each.
        cwd: their working directory.
        silence: seconds without a line of any process that are taken for a hang.

    Returns:
        What each of them printed.

    Raises:
        AssertionError: with the end of the log of the process that failed, or of the first one if they hang.
    """
    running = []
    for command, log, env in zip(commands, logs, envs, strict=True):
        with log.open("w") as out:
            running.append(
                subprocess.Popen(
                    [sys.executable, *command], cwd=cwd, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env}
                )
            )
    said, since = 0, time.monotonic()
    try:
        while any(p.poll() is None for p in running) and not any(p.poll() for p in running):
            if (now := sum(log.stat().st_size for log in logs)) != said:
                said, since = now, time.monotonic()
            assert time.monotonic() - since < silence, f"no line for {silence:g} s: " + logs[0].read_text()[-1000:]
            time.sleep(0.1)
    finally:
        for p in running:
            p.kill()
            p.wait()
    for p, log in zip(running, logs, strict=True):
        # a process that was ended because another one failed is not the one to blame
        assert p.returncode in (0, -9), log.read_text()[-3000:]
    assert all(p.returncode == 0 for p in running), logs[0].read_text()[-3000:]
    return [log.read_text() for log in logs]
