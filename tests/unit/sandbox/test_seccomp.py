"""The system call filter, interpreted as the kernel would: also for the architecture that the tests don't run on."""

from __future__ import annotations

import ctypes.util
import errno
import struct
import sys
from functools import cache

import pytest

from privcode.errors import SandboxUnavailable
from services.sandbox.core.seccomp import ALLOWED, REFUSED, syscall_filter

ALLOW, KILL = "allowed", "killed"
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HIGH = 1 << 32  # of an argument that the kernel takes for 32 bits
# Numbers by hand, so that a name mistaken in the list is found here.
CALLS = {
    "x86_64": {
        "read": 0, "ioctl": 16, "socket": 41, "socketpair": 53, "clone": 56, "execve": 59, "personality": 135,
        "prctl": 157, "futex": 202, "openat": 257, "prlimit64": 302, "getrandom": 318,
        "ptrace": 101, "syslog": 103, "mount": 165, "umount2": 166, "reboot": 169, "init_module": 175, "quotactl": 179,
        "keyctl": 250, "unshare": 272, "perf_event_open": 298, "open_by_handle_at": 304, "setns": 308,
        "process_vm_readv": 310, "memfd_create": 319, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
        "shmget": 29, "msgget": 68, "pivot_root": 155,
        "modify_ldt": 154, "io_setup": 206, "mq_open": 240, "seccomp": 317, "vmsplice": 278,
    },
    "aarch64": {
        "read": 63, "ioctl": 29, "socket": 198, "socketpair": 199, "clone": 220, "execve": 221, "personality": 92,
        "prctl": 167, "futex": 98, "openat": 56, "prlimit64": 261, "getrandom": 278,
        "ptrace": 117, "syslog": 116, "mount": 40, "umount2": 39, "reboot": 142, "init_module": 105, "quotactl": 60,
        "keyctl": 219, "unshare": 97, "perf_event_open": 241, "open_by_handle_at": 265, "setns": 268,
        "process_vm_readv": 270, "memfd_create": 279, "kexec_file_load": 294, "bpf": 280, "userfaultfd": 282,
        "shmget": 194, "msgget": 186, "pivot_root": 41,
        "io_setup": 0, "mq_open": 180, "seccomp": 277, "vmsplice": 75,
    },
}  # fmt: skip
# The same number everywhere.
IO_URING_SETUP, OPEN_TREE, CLONE3, PIDFD_GETFD, PROCESS_MADVISE, MOUNT_SETATTR = 425, 428, 435, 438, 440, 442
machines = pytest.mark.parametrize("machine", AUDIT)


@cache
def program(machine: str) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", syscall_filter(machine)))


def decide(machine: str, call: str | int, *arguments: int, audit: int | None = None) -> str:
    number = CALLS[machine][call] if isinstance(call, str) else call
    arguments += (0,) * (6 - len(arguments))
    data = struct.pack("=IIQ6Q", number, AUDIT[machine] if audit is None else audit, 0, *arguments)
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, k = program(machine)[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == 0x54:
            accumulator &= k
        elif code == 0x05:
            position += k
        elif code == 0x06:
            if k == 0x7FFF0000:
                return ALLOW
            return KILL if k == 0x80000000 else errno.errorcode[k & 0xFFFF]
        else:
            true = {
                0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: bool(accumulator & k),
            }[code]  # fmt: skip
            position += if_true if true else if_false


@machines
def test_ordinary_calls_are_allowed(machine: str) -> None:
    for call in ("read", "execve", "prctl", "futex", "openat", "prlimit64", "getrandom"):
        assert decide(machine, call) == ALLOW, call


@machines
def test_calls_for_breaking_out_are_refused(machine: str) -> None:
    by_name = (
        "ptrace", "syslog", "mount", "umount2", "reboot", "init_module", "quotactl", "keyctl", "unshare",
        "perf_event_open", "open_by_handle_at", "setns", "process_vm_readv", "memfd_create", "kexec_file_load", "bpf",
        "userfaultfd", "shmget", "msgget", "pivot_root",
    )  # fmt: skip
    by_number = (IO_URING_SETUP, OPEN_TREE, PIDFD_GETFD, PROCESS_MADVISE, MOUNT_SETATTR)
    for call in (*by_name, *by_number):
        assert decide(machine, call) == "EPERM", call


@machines
def test_what_is_not_listed_is_not_there(machine: str) -> None:
    unlisted = [call for call in ("modify_ldt", "io_setup", "mq_open", "seccomp", "vmsplice") if call in CALLS[machine]]
    for call in (*unlisted, CLONE3, *range(470, 1000), 0xFFFFFFFF):
        assert decide(machine, call) == "ENOSYS", call


@machines
def test_no_more_is_allowed_than_the_list_has(machine: str) -> None:
    conditional = len(("clone", "socket", "socketpair", "ioctl", "personality"))
    listed = sum(len(calls.split()) for calls in ALLOWED.values())
    allowed = [number for number in range(1000) if decide(machine, number) == ALLOW]
    assert 200 < len(allowed) <= listed + conditional


def test_no_call_is_listed_twice() -> None:
    listed = " ".join(
        (*ALLOWED.values(), *REFUSED.values(), "clone clone3 socket socketpair ioctl personality")
    ).split()
    assert sorted(listed) == sorted(set(listed))


@machines
def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str) -> None:
    for flags in (17, 0x3D0F00, 0x1200011):  # fork, a thread, glibc's fork
        assert decide(machine, "clone", flags) == ALLOW
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        for flags in (namespace | 17, namespace | 0x3D0F00, HIGH | namespace):
            assert decide(machine, "clone", flags) == "EPERM"
    assert decide(machine, "clone", 0x10020000 | 17) == "EPERM"


@machines
@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_socket_families(machine: str, call: str) -> None:
    decisions = {family: decide(machine, call, family) for family in range(50)}
    assert {family for family, decision in decisions.items() if decision == ALLOW} == {1, 2, 10}
    assert set(decisions.values()) == {ALLOW, "EAFNOSUPPORT"}
    for family in (16, 17, 38, 40):
        assert decide(machine, call, HIGH | family) == "EAFNOSUPPORT"


@machines
def test_typing_into_terminals_is_refused(machine: str) -> None:
    for request in (0x5412, 0x541C):  # TIOCSTI, TIOCLINUX
        assert decide(machine, "ioctl", 1, request) == "EPERM"
        assert decide(machine, "ioctl", 1, HIGH | request) == "EPERM"


@machines
def test_device_requests(machine: str) -> None:
    for request in (0x5401, 0x5413, 0x541B, 0x5421, 0x80045430, 0x8912):  # isatty, window size, FIONREAD, …
        assert decide(machine, "ioctl", 1, request) == ALLOW
    for request in (0x4B3A, 0x5423, 0x9400, 0xC0045877):  # KDSETMODE, TIOCSETD, of btrfs, FIFREEZE
        assert decide(machine, "ioctl", 1, request) == "ENOSYS"


@machines
def test_personalities(machine: str) -> None:
    decisions = {persona: decide(machine, "personality", persona) for persona in (0, 0xFFFFFFFF, 0x40000, 0x400008, 6)}
    assert [persona for persona, decision in decisions.items() if decision == ALLOW] == [0, 0xFFFFFFFF]


@machines
def test_another_architectures_calls_kill(machine: str) -> None:
    assert decide(machine, "read", audit=0x40000003) == KILL


def test_the_x32_table_is_closed() -> None:
    assert decide("x86_64", 0x40000000 + CALLS["x86_64"]["unshare"]) == KILL
    assert decide("x86_64", 0x40000000 + CALLS["x86_64"]["read"]) == KILL


def test_an_architecture_without_a_filter_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="riscv64"):
        syscall_filter("riscv64")


def test_without_libseccomp_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pyseccomp", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None if name == "seccomp" else "libc.so.6")
    with pytest.raises(SandboxUnavailable, match="apt-get install libseccomp2"):
        syscall_filter()
