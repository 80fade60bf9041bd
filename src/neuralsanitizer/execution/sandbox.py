"""A process that may compute and little else: what opens files that carry code.

A function of ours runs in a child with an empty environment, in a folder of its own that is removed afterwards, with
limits on memory, time and files. On Linux the kernel holds it in besides: no file can be written but in that folder,
and none read but the interpreter's and the system's libraries (Landlock); no connection, no other program, no signal to
another process (seccomp); no new privileges; a network without interfaces (namespaces). Which of these barriers stand
is told before the function sees its input. What comes back are bytes, to be read as if a stranger had sent them.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import platform
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from neuralsanitizer.errors import ModelError, TimeLimitError

__all__ = ["BARRIERS", "Confined", "confine", "run_confined"]

BARRIERS = ("limits", "privileges", "network", "files", "calls")
"""What a full sandbox has: limits on memory and time, no new privileges, no network, no files but libraries, and none
of the system calls that reach other processes."""

MOST_SECONDS = 60.0
"""As long as a network of unknown origin may take for its first answer, too (:mod:`neuralsanitizer.models.bounds`)."""
MOST_MEMORY = 4 * 1024**3
"""Bytes of addresses beyond what the interpreter and its libraries take, and four times the input. Chosen, not
measured: opening and following a program holds its weights a few times."""

_WRITTEN = 16 * 1024**2  # bytes a file in its folder may have, beside twice the input's
_HEAD = 4096  # bytes of the line that tells the barriers
_REASON = 300  # characters of an error that are passed on
_MORE_THAN_SECONDS = 5  # of processor time a core, before the parent's clock ends it anyway


@dataclass(frozen=True)
class Confined:
    """What a confined function gave.

    Attributes:
        content: Its result. Code in the input may have made it up.
        barriers: Which of :data:`BARRIERS` stood.
    """

    content: bytes
    barriers: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The barriers that this system does not have."""
        return tuple(barrier for barrier in BARRIERS if barrier not in self.barriers)


def run_confined(function: str, content: bytes, settings: dict[str, Any], *, most: int, what: str) -> Confined:
    """Run ``function(content, settings)`` behind all barriers that the system has.

    Args:
        function: ``package.module:function`` of this package, which gives bytes.
        content: Given to it as it is.
        settings: JSON values.
        most: Bytes of the result that are read.
        what: Is done, for errors.

    Raises:
        ModelError: It raised an error, died, or gave more than ``most`` bytes.
        TimeLimitError: It took longer than :data:`MOST_SECONDS`.
    """
    with tempfile.TemporaryDirectory(prefix="confined-") as place:
        start = (
            f"import sys; sys.path[:] = {[entry for entry in sys.path if entry]!r}; import {__name__} as s; s._main()"
        )
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and code of ours
            [sys.executable, "-I", "-c", start, function, json.dumps(settings), str(len(content))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=place,
            env=_environment(place),
            start_new_session=os.name == "posix",
        )
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(MOST_SECONDS, end)
        feeder = threading.Thread(target=_feed, args=(process.stdin, content), daemon=True)
        clock.start()
        feeder.start()
        try:
            head = process.stdout.readline(_HEAD)
            status = process.stdout.read(1)
            answer = process.stdout.read(most + 1)
        finally:
            clock.cancel()
            process.kill()
            process.stdout.close()
            process.wait()
            feeder.join()
    if late.is_set():
        raise TimeLimitError(f"{what} takes longer than {MOST_SECONDS:g} s: it is given up")
    if status == b"-":
        raise ModelError(f"{what} failed: {_reason(answer)}")
    if status != b"+" or len(answer) > most:
        raise ModelError(f"{what} failed: the process was ended, or gave no result (it may ask for too much memory)")
    return Confined(answer, tuple(barrier for barrier in BARRIERS if barrier in json.loads(head)))


def confine(place: Path, most_memory: int, most_written: int) -> list[str]:
    """Shut the calling process in, for good.

    Args:
        place: The one folder that it may write files in.
        most_memory: Bytes of addresses that it may take beyond those that it has.
        most_written: Bytes that a file may grow to.

    Returns:
        Which of :data:`BARRIERS` stand now.
    """
    attempts: dict[str, Callable[[], None]] = {"limits": lambda: _limit(most_memory, most_written)}
    if sys.platform == "linux":
        attempts |= {
            "privileges": _no_new_privileges,
            "network": _leave_network,
            "files": lambda: _landlock(place),
            "calls": _filter_calls,  # last: it forbids what the others call
        }
    stand: list[str] = []
    for barrier, put_up in attempts.items():
        with suppress(OSError, KeyError, ValueError, AttributeError, ImportError):
            put_up()
            stand.append(barrier)
    if "calls" in stand and "network" not in stand:
        stand.append("network")  # sockets are among the calls that are forbidden
    return stand


def _main() -> None:
    """In the child: read everything, load the libraries, shut in, tell so, and only then look at the input."""
    function, settings, length = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    content = sys.stdin.buffer.read(length)
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    answer = os.fdopen(os.dup(1), "wb", buffering=0)
    quiet = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(quiet, standard)
    stand = confine(Path.cwd(), MOST_MEMORY + 4 * len(content), _WRITTEN + 2 * len(content))
    answer.write(json.dumps(stand).encode() + b"\n")
    try:
        result = b"+" + work(content, settings)
    except BaseException as error:  # noqa: BLE001 - hostile input makes it raise anything
        result = b"-" + f"{type(error).__name__}: {error}".encode("utf-8", "replace")
    _write_all(answer, result)
    os._exit(0)  # without the input's exit handlers


def _write_all(file: Any, content: bytes) -> None:  # noqa: ANN401 - a raw file, which writes a part at a time
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _feed(pipe: BinaryIO, content: bytes) -> None:
    with suppress(OSError):  # the child died
        pipe.write(content)
        pipe.close()


def _reason(answer: bytes) -> str:
    """The first line of an error, without anything that a terminal would obey."""
    lines = answer[: 4 * _REASON].decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
    return "".join(character for character in lines[0] if character.isprintable())[:_REASON]


def _environment(place: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # Windows starts nothing without
    return kept | {"HOME": place, "TMPDIR": place, "TEMP": place, "TMP": place, "OMP_NUM_THREADS": "1"}


def _limit(most_memory: int, most_written: int) -> None:
    import resource  # noqa: PLC0415 - Unix has it

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) if sys.platform == "linux" else 0
    memory = pages * resource.getpagesize() + most_memory
    seconds = int(MOST_SECONDS) + _MORE_THAN_SECONDS
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, most_written),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


# What follows are Linux's own numbers: <linux/prctl.h>, <linux/sched.h>, <linux/landlock.h>, <linux/seccomp.h>.

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_NEW_USER, _NEW_NET, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all machines
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many kinds of access each knows
_BOTH_TCP, _BOTH_SCOPES = 0b11, 0b11


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _no_new_privileges() -> None:
    _checked(_libc().prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _leave_network() -> None:
    """Into a user and a network namespace that have nothing: not even root's rights over files are left."""
    _checked(_libc().unshare(_NEW_USER | _NEW_NET | _NEW_IPC))


def _libraries() -> list[Path]:
    """Folders that Python and the libraries that it loads later lie in."""
    paths = [*sys.path, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]
    system = [
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
        "/etc/ld.so.cache",
        "/etc/localtime",
        "/sys/devices/system/cpu",
    ]
    devices = ["/dev/null", "/dev/zero", "/dev/urandom", "/proc/cpuinfo", "/proc/meminfo"]
    return [path for path in map(Path, [*paths, *system, *devices]) if path.is_absolute() and path.exists()]


def _landlock(place: Path) -> None:
    """No file can be opened but those of libraries, to read them, and those of a folder."""
    libc = _libc()
    version = _checked(libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG))
    handled = (1 << _RIGHTS_BY_VERSION.get(version, max(_RIGHTS_BY_VERSION.values()))) - 1
    fields = [handled, *([_BOTH_TCP] if version >= 4 else []), *([_BOTH_SCOPES] if version >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    for path in [place, *_libraries()]:
        rights = handled & ~_EXECUTE if path == place else _READ_FILE | (_READ_DIR if path.is_dir() else 0)
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, opened), 0))
        finally:
            os.close(opened)
    _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


_CALLS = {
    # name: number on x86_64, on aarch64
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "kill": (62, 129),
    "tkill": (200, 130),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE = (56, 220)
_CLONE3 = 435  # hides its flags from a filter: the C library falls back to the other where there is none
_THREAD = 0x10000  # of clone's flags
_LOAD_WORD, _JUMP_EQUAL, _JUMP_FROM, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of the filter's language
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # bytes from the start of what a filter sees
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_OTHER_TABLE = 0x40000000  # x86_64 has its calls a second time from here on


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter_calls() -> None:
    """The calls of the table fail as forbidden; those of another machine's table end the process."""
    column, machine = _MACHINES[platform.machine()]
    forbidden = [numbers[column] for numbers in _CALLS.values() if numbers[column] is not None]
    fail = _FAIL | errno.EPERM
    steps: list[tuple[int, int, int, int | None]] = [
        (_LOAD_WORD, 0, 0, _MACHINE),
        (_JUMP_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD_WORD, 0, 0, _NUMBER),
        (_JUMP_FROM, 0, 1, _OTHER_TABLE),
        (_RETURN, 0, 0, fail),
    ]
    for number in forbidden:
        steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, fail)]
    steps += [
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
        (_JUMP_EQUAL, 0, 3, _CLONE[column]),  # of threads alone
        (_LOAD_WORD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_IF_SET, 1, 0, _THREAD),
        (_RETURN, 0, 0, fail),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = _Program(len(steps), code)
    _checked(_libc().prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0))
