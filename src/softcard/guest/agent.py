"""The guest's init: makes a root that can be written, then runs commands for the host.

Started as process 1 with the host's own Python from the host's own root, which is read-only:
`python3 agent.py CHANNEL [greeting=DIGITS] [modules=FOLDER]`. Standard library only.

CHANNEL is the file over which it speaks with the host. The greeting, hexadecimal digits, is what
both ends say first on a channel that outlives a reboot. The folder is one of the host with the
kernel's modules; they are loaded as devices appear.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import marshal
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
import tty

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120

import frames  # type: ignore[import-not-found]  # beside this file, not the package

TYPE_CHECKING = False  # a tenth of a second on an emulated processor goes into importing typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MS_RDONLY, MS_BIND, MS_MOVE = 1, 4096, 8192
SYS_FINIT_MODULE = 313
RB_POWER_OFF, RB_AUTOBOOT = 0x4321FEDC, 0x01234567
NETLINK_KOBJECT_UEVENT = 15
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
PCI_DEVICES, ROOT_BUS = "/sys/bus/pci/devices", "0000:00:"
MODPROBE = "/sbin/modprobe"
CHANNEL_TIMEOUT = 10.0
CHUNK = 1 << 16
KILLED = 128

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    os.makedirs(target, exist_ok=True)  # noqa: PTH103
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def make_root(modules: str) -> None:
    """Put a tmpfs over the host's root, so that what the guest writes stays in the guest.

    The host's folder `modules` becomes the one in which this kernel's modules are looked for.
    """
    mount("proc", "/proc", "proc")
    # Before anything covers it.
    kept = os.open(modules, os.O_PATH | os.O_CLOEXEC) if modules else -1
    mount("tmpfs", "/tmp", "tmpfs")
    for folder in ("upper", "work", "root"):
        os.mkdir(f"/tmp/{folder}")  # noqa: PTH102
    mount(
        "overlay", "/tmp/root", "overlay", 0,
        "lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work",
    )  # fmt: skip
    os.chdir("/tmp/root")
    for source, target, kind in (
        ("proc", "proc", "proc"),
        ("sysfs", "sys", "sysfs"),
        ("devtmpfs", "dev", "devtmpfs"),
        ("devpts", "dev/pts", "devpts"),
        ("tmpfs", "dev/shm", "tmpfs"),
        ("tmpfs", "run", "tmpfs"),
        ("tmpfs", "tmp", "tmpfs"),
    ):
        mount(source, target, kind)
    if modules:
        mount(f"/proc/self/fd/{kept}", f"lib/modules/{os.uname().release}", "", MS_BIND)
        os.close(kept)
    for name in ("debug", "config"):
        try:
            mount(name + "fs", f"sys/kernel/{name}", name + "fs")
        except OSError:
            pass  # not built into this kernel
    if libc.mount(b".", b"/", None, MS_MOVE, None):
        raise OSError(ctypes.get_errno(), "cannot move the new root into place")
    os.chroot(".")
    os.chdir("/")
    for link, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ):
        if not os.path.lexists(f"/dev/{link}"):
            os.symlink(target, f"/dev/{link}")  # noqa: PTH211
    os.makedirs("/run/lock", exist_ok=True)  # noqa: PTH103
    socket.sethostname("softcard")
    # Any family will do, and this one every kernel has.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


class Command:
    """One process that the host has asked for."""

    def __init__(self, ident: int, pid: int, stdin: int) -> None:
        self.ident = ident
        self.pid = pid
        self.stdin = stdin
        self.input = bytearray()
        self.input_ended = False
        self.outputs: set[int] = set()


def open_channel(path: str) -> int:
    """Open the file over which the host is reached, which may come later than this process."""
    deadline = time.monotonic() + CHANNEL_TIMEOUT
    while True:
        try:
            channel = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            break
    if os.isatty(channel):
        tty.setraw(channel, termios.TCSANOW)
    return channel


class Agent:
    """Serves the host's requests, and takes in orphans as process 1 must."""

    def __init__(self, channel: int, greeting: bytes, *, loads_modules: bool) -> None:
        self.channel = channel
        self.greeting = greeting
        self.loads_modules = loads_modules
        self.epoll = select.epoll()
        self.reader = frames.FrameReader(greeting)
        self.commands: dict[int, Command] = {}
        self.outputs: dict[int, tuple[Command, int]] = {}
        self.inputs: dict[int, Command] = {}
        self.waits: list[tuple[int, str, bool]] = []
        self.uevents = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT
        )
        self.uevents.bind((0, 1))
        wake, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.wake = wake
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for fd in (channel, wake, self.uevents.fileno()):
            self.epoll.register(fd, select.EPOLLIN)

    def send(self, kind: int, ident: int, payload: bytes = b"") -> None:
        """Send one frame; waits while the host is busy."""
        view = memoryview(frames.pack(kind, ident, payload))
        while view:
            view = view[os.write(self.channel, view) :]

    def serve(self) -> None:
        """Serve until the host hangs up."""
        if self.loads_modules:
            self.load_modules_of_cards()
        if self.greeting:
            os.write(self.channel, self.greeting)
        else:
            self.send(frames.READY, 0)
        while True:
            for fd, _ in self.epoll.poll(0.05 if self.waits else -1):
                if fd == self.channel:
                    data = os.read(self.channel, CHUNK)
                    if not data:
                        return
                    greeted = self.reader.greeted
                    received = self.reader.feed(data)
                    if self.reader.greeted != greeted:
                        self.send(frames.READY, 0)
                    if self.reader.fresh:
                        self.send(frames.TAKEN, 0, struct.pack("<I", self.reader.fresh))
                    for frame in received:
                        self.handle(*frame)
                elif fd == self.wake:
                    os.read(self.wake, CHUNK)
                    self.reap()
                elif fd == self.uevents.fileno():
                    self.drain_uevents()
                elif fd in self.outputs:
                    self.forward(fd)
                elif fd in self.inputs:
                    self.write_input(self.inputs[fd])
            self.check_waits()

    def handle(self, kind: int, ident: int, payload: bytes) -> None:
        """One frame of the host."""
        command = self.commands.get(ident)
        if kind == frames.RUN:
            self.run(ident, marshal.loads(payload))
        elif kind == frames.CALL:
            self.call(ident, marshal.loads(payload))
        elif command is None:
            return
        elif kind == frames.INPUT:
            command.input += payload
            self.write_input(command)
        elif kind == frames.END_OF_INPUT:
            command.input_ended = True
            self.write_input(command)
        elif kind == frames.SIGNAL:
            try:
                os.killpg(command.pid, payload[0])
            except ProcessLookupError:
                pass
        elif kind == frames.RESIZE and command.stdin >= 0:
            rows, columns = marshal.loads(payload)
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(command.stdin, termios.TIOCSWINSZ, size)

    # Commands.

    def run(self, ident: int, request: dict[str, Any]) -> None:
        """Start a command."""
        try:
            # posix_spawnp(3) looks a program up in our own PATH, not in the one it hands on.
            os.environ["PATH"] = request["env"].get("PATH", os.defpath)
            self.look_again(os.chdir, request["cwd"])
            if request["terminal"]:
                self.start_in_terminal(ident, request)
            else:
                self.look_again(self.start, ident, request)
        except OSError as error:
            what = error.filename or request["argv"][0]
            self.send(frames.ERROR_OUTPUT, ident, f"{what}: {error.strerror}\n".encode())
            status = 127 if error.errno == errno.ENOENT else 126
            self.send(frames.EXIT, ident, struct.pack("<i", status))
        finally:
            os.chdir("/")

    def look_again(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """`call(*arguments)`, once more where a file is missing that the host may have made.

        A stock kernel's overlay does not ask its lower layer again for a name that was not there.
        """
        try:
            return call(*arguments)
        except FileNotFoundError:
            if not self.greeting:
                raise  # the embedded kernel's overlay does
            with open("/proc/sys/vm/drop_caches", "w") as file:  # noqa: PTH123
                file.write("2")
            return call(*arguments)

    def start(self, ident: int, request: dict[str, Any]) -> None:
        """Start a command with pipes."""
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        ends = (pipes[0][0], pipes[1][1], pipes[2][1])
        keep = (pipes[0][1], pipes[1][0], pipes[2][0])
        try:
            pid = os.posix_spawnp(
                request["argv"][0], request["argv"], request["env"],
                file_actions=[(os.POSIX_SPAWN_DUP2, end, fd) for fd, end in enumerate(ends)],
                setsid=True, setsigdef=[signal.SIGPIPE],
            )  # fmt: skip
        except OSError:
            for fd in keep:
                os.close(fd)
            raise
        finally:
            for fd in ends:
                os.close(fd)
        command = Command(ident, pid, keep[0])
        os.set_blocking(keep[0], False)
        self.commands[ident] = command
        self.add_output(command, keep[1], frames.OUTPUT)
        self.add_output(command, keep[2], frames.ERROR_OUTPUT)

    def start_in_terminal(self, ident: int, request: dict[str, Any]) -> None:
        """Start a command in a pseudo-terminal of its own."""
        master, slave = os.openpty()
        rows, columns = request["terminal"]
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
                for fd in range(3):
                    os.dup2(slave, fd)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                os.execvpe(request["argv"][0], request["argv"], request["env"])
            except OSError as error:
                os.write(2, f"{request['argv'][0]}: {error.strerror}\n".encode())
            os._exit(127)
        os.close(slave)
        os.set_inheritable(master, False)
        command = Command(ident, pid, os.dup(master))
        os.set_blocking(command.stdin, False)
        self.commands[ident] = command
        self.add_output(command, master, frames.OUTPUT)

    def add_output(self, command: Command, fd: int, kind: int) -> None:
        """Forward what comes from `fd`."""
        command.outputs.add(fd)
        self.outputs[fd] = (command, kind)
        self.epoll.register(fd, select.EPOLLIN)

    def forward(self, fd: int) -> None:
        """Send what a command has written."""
        command, kind = self.outputs[fd]
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal whose last process has gone
        if data:
            self.send(kind, command.ident, data)
            return
        self.epoll.unregister(fd)
        del self.outputs[fd]
        command.outputs.discard(fd)
        os.close(fd)

    def write_input(self, command: Command) -> None:
        """Give a command its input, as much as it takes now."""
        if command.stdin < 0:
            return
        try:
            while command.input:
                del command.input[: os.write(command.stdin, command.input)]
        except BlockingIOError:
            if command.stdin not in self.inputs:
                self.inputs[command.stdin] = command
                self.epoll.register(command.stdin, select.EPOLLOUT)
            return
        except OSError:
            command.input_ended = True  # it reads no more
        if self.inputs.pop(command.stdin, None):
            self.epoll.unregister(command.stdin)
        if command.input_ended:
            os.close(command.stdin)
            command.stdin = -1

    def reap(self) -> None:
        """Collect ended processes, ours and orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for command in list(self.commands.values()):
                if command.pid == pid:
                    code = os.waitstatus_to_exitcode(status)
                    # What a background child of it still holds open is not waited for.
                    for fd in list(command.outputs):
                        self.drain(fd)
                    self.finish(command, code if code >= 0 else KILLED - code)

    def drain(self, fd: int) -> None:
        """Forward what is left of an ended command's output."""
        os.set_blocking(fd, False)
        while fd in self.outputs and select.select([fd], [], [], 0)[0]:
            self.forward(fd)

    def finish(self, command: Command, status: int) -> None:
        """Report a command that has ended."""
        del self.commands[command.ident]
        for fd in command.outputs:
            self.epoll.unregister(fd)
            del self.outputs[fd]
            os.close(fd)
        command.outputs.clear()
        if command.stdin >= 0:
            if self.inputs.pop(command.stdin, None):
                self.epoll.unregister(command.stdin)
            os.close(command.stdin)
        self.send(frames.EXIT, command.ident, struct.pack("<i", status))

    # Calls.

    def call(self, ident: int, request: dict[str, Any]) -> None:
        """A small service that needs no process."""
        try:
            if request["call"] == "wait":
                self.waits.append((ident, request["path"], request["exists"]))
                return
            if request["call"] == "write":
                fd = os.open(request["path"], os.O_WRONLY)
                try:
                    os.write(fd, request["text"].encode())
                finally:
                    os.close(fd)
            elif request["call"] == "module":
                self.load_module(request["path"], request["parameters"])
            elif request["call"] == "reboot":
                os.sync()
                libc.reboot(ctypes.c_int(RB_AUTOBOOT))
            self.send(frames.RESULT, ident)
        except OSError as error:
            self.send(frames.FAILURE, ident, (error.strerror or "failed").encode())

    def load_module(self, path: str, parameters: str) -> None:
        """finit_module(2)."""
        fd = self.look_again(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.syscall(SYS_FINIT_MODULE, fd, parameters.encode(), 0):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(fd)

    def drain_uevents(self) -> None:
        """Something in sysfs has changed; `check_waits` looks what."""
        try:
            while message := self.uevents.recv(CHUNK):
                if self.loads_modules:
                    self.load_modules_for(message)
        except OSError:
            pass

    # Modules, as udev would load them.

    def load_modules_of_cards(self) -> None:
        """Load what fits the cards that were there from the start; nothing for the machine itself.

        Returns when their drivers have taken them, as a kernel with built-in drivers would.
        """
        aliases = []
        for name in os.listdir(PCI_DEVICES):  # noqa: PTH208
            if not name.startswith(ROOT_BUS):
                with open(f"{PCI_DEVICES}/{name}/modalias") as file:  # noqa: PTH123
                    aliases.append(file.read().strip())
        pid = self.modprobe(aliases)
        if pid:
            os.waitpid(pid, 0)

    def load_modules_for(self, message: bytes) -> None:
        """Load what fits a device that has come: `add@PATH`, then `NAME=VALUE`s, all ended by 0."""
        first, *fields = message.decode(errors="replace").split("\0")
        if first.startswith("add@"):
            marked = "MODALIAS="
            self.modprobe([f.removeprefix(marked) for f in fields if f.startswith(marked)])

    def modprobe(self, aliases: list[str]) -> int:
        """Start loading modules, if there are any; the process, which `reap` collects."""
        if not aliases:
            return 0
        command = [MODPROBE, "--all", "--quiet", "--use-blacklist", *aliases]
        try:
            return os.posix_spawn(command[0], command, os.environ)
        except OSError as error:
            print(f"softcard agent: {MODPROBE}: {error.strerror}", flush=True)
            return 0

    def check_waits(self) -> None:
        """Answer those whose file has come or gone."""
        for wait in list(self.waits):
            ident, path, exists = wait
            if os.path.lexists(path) == exists:
                self.waits.remove(wait)
                self.send(frames.RESULT, ident)


def main() -> None:
    """Be the init process."""
    _, path, *words = sys.argv
    options = dict(word.split("=", 1) for word in words if "=" in word)
    greeting, modules = bytes.fromhex(options.get("greeting", "")), options.get("modules", "")
    make_root(modules)
    Agent(open_channel(path), greeting, loads_modules=bool(modules)).serve()


if __name__ == "__main__":
    try:
        main()
    except BaseException as problem:
        print(f"softcard agent: {type(problem).__name__}: {problem}", flush=True)
        time.sleep(0.1)
    os.sync()
    libc.reboot(ctypes.c_int(RB_POWER_OFF))
