"""A guest: a Linux in which commands can be run, whatever boots it."""

from __future__ import annotations

import ctypes
import os
import select
import shlex
import signal
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from softcard.errors import GuestError, UsageError
from softcard.guest.channel import Channel, NoAnswerError, Process, terminal_size
from softcard.guest.log import KernelLog

PR_SET_PDEATHSIG = 1
AGENT = Path(__file__).resolve().with_name("agent.py")
"""The init of every guest; it is run there, and never imported here."""

CALL_TIMEOUT = 30.0
COMMAND_TIMEOUT = 120.0
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "TERM": os.environ.get("TERM", "dumb"),
}
SHELLS = ("/bin/bash", "/bin/sh")
KMSG = "/dev/kmsg"


@dataclass(frozen=True)
class Result:
    """What a command in the guest has done.

    Attributes:
        argv: the command.
        status: its exit status; 128 plus the signal's number where a signal ended it.
        stdout, stderr: what it has written, decoded as UTF-8.
    """

    argv: Sequence[str]
    status: int
    stdout: str
    stderr: str


class CommandError(GuestError):
    """A command in the guest has failed; `result` has its output."""

    def __init__(self, result: Result) -> None:
        said = (result.stderr or result.stdout).strip()
        super().__init__(
            f"{shlex.join(result.argv)} exited with status {result.status}"
            + (f": {said}" if said else "")
        )
        self.result = result


class Guest:
    """Runs commands in a Linux through its agent.

    Args:
        channel: leads to the agent.
        log: the kernel's log.
        environment: the variables of its commands.
        cwd: the folder that they run in.

    Attributes:
        log: the kernel's log.
        process: what the guest runs in.
    """

    log: KernelLog
    process: subprocess.Popen[bytes]

    def __init__(
        self,
        channel: Channel,
        log: KernelLog,
        *,
        environment: Mapping[str, str] = ENVIRONMENT,
        cwd: str = "/",
    ) -> None:
        self.log = log
        self._channel = channel
        self._environment = dict(environment)
        self._cwd = cwd

    @property
    def alive(self) -> bool:
        """Whether the guest is still running."""
        return self.process.poll() is None

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Process:
        """Start a command and return at once.

        Args:
            argv: the program, looked up in the guest's PATH, and its arguments.
            env: variables in addition to, or in place of, the guest's own ones.
            cwd: the folder to run in; the guest's own when left out.

        Raises:
            GuestError: the guest has ended.
        """
        return Process(
            self._channel, argv, env=self._environment | dict(env or {}), cwd=cwd or self._cwd
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",  # noqa: A002  # subprocess.run's word
        check: bool = True,
        timeout: float = COMMAND_TIMEOUT,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Result:
        """Run a command and wait for its end.

        Args:
            argv: the program, looked up in the guest's PATH, and its arguments.
            input: what it reads on its standard input.
            check: raise when its exit status is not 0.
            timeout: seconds; then the command is killed.
            env: variables in addition to, or in place of, the guest's own ones.
            cwd: the folder to run in; the guest's own when left out.

        Raises:
            CommandError: `check` is set and it failed.
            GuestError: it has not ended in time, or the guest has ended; with the end of the
                kernel's log.
        """
        output, errors = bytearray(), bytearray()
        process = self.start(argv, env=env, cwd=cwd)
        if input:
            process.write(input)
        process.end_input()
        try:
            status = process.wait(timeout, output.extend, errors.extend)
        except TimeoutError:
            process.kill(signal.SIGKILL)
            raise GuestError(
                f"{shlex.join(argv)} has not ended within {timeout:g} s; the kernel log ends with:"
                f"\n{self.log.tail()}"
            ) from None
        result = Result(
            tuple(argv), status, output.decode(errors="replace"), errors.decode(errors="replace")
        )
        if check and status:
            raise CommandError(result)
        return result

    def sh(self, script: str, *, check: bool = True, timeout: float = COMMAND_TIMEOUT) -> Result:
        """Run a shell script; see `run`."""
        return self.run(["/bin/sh", "-c", script], check=check, timeout=timeout)

    def stream(self, argv: Sequence[str], *, cwd: str | None = None) -> int:
        """Run a command with this process's own standard output and error; its exit status."""
        process = self.start(argv, cwd=cwd)
        process.end_input()
        return process.wait(
            None,
            lambda data: _write_all(sys.stdout.fileno(), data),
            lambda data: _write_all(sys.stderr.fileno(), data),
        )

    def shell(self, argv: Sequence[str] | None = None) -> int:
        """An interactive shell in this process's own terminal; its exit status.

        Raises:
            UsageError: standard input is no terminal.
        """
        if not sys.stdin.isatty():
            raise UsageError(
                "a shell needs a terminal on standard input: run a command instead, as in "
                "softcard run CARD -- COMMAND"
            )
        if argv is None:
            argv = [next(shell for shell in SHELLS if Path(shell).exists())]
        stdin = sys.stdin.fileno()
        process = Process(
            self._channel, argv, env=self._environment, cwd=self._cwd,
            terminal=terminal_size(stdin),
        )  # fmt: skip
        return _in_raw_terminal(process, stdin)

    def load_module(self, path: Path, parameters: str = "") -> None:
        """Load a kernel module file.

        Raises:
            GuestError: the kernel refuses it; its log says why.
        """
        position = self.log.position()
        try:
            self._channel.call(
                "module", CALL_TIMEOUT, path=str(path.absolute()), parameters=parameters
            )
        except GuestError as error:
            said = "\n".join(self.log.since(position)[-5:])
            raise GuestError(f"{error}" + (f"\n{said}" if said else "")) from None

    def unload_module(self, name: str) -> None:
        """Unload a kernel module by its name."""
        self.run(["rmmod", name])

    def wait_for_path(
        self, path: str, *, exists: bool = True, timeout: float = CALL_TIMEOUT
    ) -> None:
        """Wait until a file, such as a device node, exists, or does no longer.

        Raises:
            GuestError: that has not happened within `timeout` seconds.
        """
        try:
            self._channel.call("wait", timeout, path=path, exists=exists)
        except NoAnswerError:
            state = "is still missing" if exists else "is still there"
            raise GuestError(
                f"{path} {state} in the guest after {timeout:g} s; the kernel log ends with:\n"
                f"{self.log.tail()}"
            ) from None

    def write_file(self, path: str, text: str) -> None:
        """Write a file that exists, such as one of sysfs.

        Raises:
            GuestError: the kernel refuses it.
        """
        self._channel.call("write", CALL_TIMEOUT, path=path, text=text)

    def settle_log(self, timeout: float) -> None:
        """Return when everything that the kernel has said before is in the log.

        Raises:
            GuestError: it is not within `timeout` seconds, or the guest has ended.
        """
        mark = f"softcard: all that was said before is here, {self.log.position()}"
        self.write_file(KMSG, mark + "\n")
        try:
            self.log.wait_for(mark, timeout)
        except TimeoutError as error:
            raise GuestError(str(error)) from None


def die_with_parent() -> Callable[[], None] | None:
    """What a child has to do so that it ends when this process is killed, for `subprocess`."""
    # The kernel sends the signal when the *thread* ends that made the child.
    if threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _in_raw_terminal(process: Process, stdin: int) -> int:
    """Join the terminal of this process and that of a command until the command ends."""
    ended_read, ended_write = os.pipe()

    def forward_typing() -> None:
        while ended_read not in (ready := select.select([stdin, ended_read], [], [])[0]):
            if ready and (typed := os.read(stdin, 1024)):
                process.write(typed)

    typing = threading.Thread(target=forward_typing, name="guest shell", daemon=True)
    saved = termios.tcgetattr(stdin)
    resized = signal.signal(
        signal.SIGWINCH, lambda number, frame: process.resize(*terminal_size(stdin))
    )
    tty.setraw(stdin)
    try:
        typing.start()
        return process.wait(None, lambda data: _write_all(sys.stdout.fileno(), data))
    finally:
        os.write(ended_write, b"x")
        typing.join()
        os.close(ended_read)
        os.close(ended_write)
        signal.signal(signal.SIGWINCH, resized)
        termios.tcsetattr(stdin, termios.TCSADRAIN, saved)
