"""The system call filter, interpreted as the kernel would: also for the architecture that the tests don't run on."""

from __future__ import annotations

import errno
import struct

import pytest

from privcode.errors import SandboxUnavailable
from services.sandbox.core.seccomp import syscall_filter

ALLOWED, KILLED = "allowed", "killed"
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE, SOCKET, UNSHARE, PTRACE = (
    {"x86_64": 56, "aarch64": 220},
    {"x86_64": 41, "aarch64": 198},
    {"x86_64": 272, "aarch64": 97},
    {"x86_64": 101, "aarch64": 117},
)
READ, EXECVE, PRLIMIT = (
    {"x86_64": 0, "aarch64": 63},
    {"x86_64": 59, "aarch64": 221},
    {"x86_64": 302, "aarch64": 261},
)
machines = pytest.mark.parametrize("machine", AUDIT)


def decide(machine: str, number: int, argument: int = 0, *, audit: int | None = None) -> str:
    data = struct.pack("=IIQ6Q", number, AUDIT[machine] if audit is None else audit, 0, argument, 0, 0, 0, 0, 0)
    program = list(struct.iter_unpack("=HBBI", syscall_filter(machine)))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, k = program[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == 0x06:
            if k == 0x7FFF0000:
                return ALLOWED
            return KILLED if k == 0x80000000 else errno.errorcode[k & 0xFFFF]
        else:
            true = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            position += if_true if true else if_false


@machines
def test_ordinary_calls_are_allowed(machine: str) -> None:
    assert [decide(machine, call[machine]) for call in (READ, EXECVE, PRLIMIT)] == [ALLOWED] * 3


@machines
def test_calls_for_breaking_out_are_refused(machine: str) -> None:
    assert [decide(machine, number) for number in (UNSHARE[machine], PTRACE[machine], 425, 429)] == ["EPERM"] * 4
    assert decide(machine, 435) == "ENOSYS"


@machines
def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str) -> None:
    for flags in (17, 0x3D0F00, 0x1200011):  # fork, a thread, glibc's fork
        assert decide(machine, CLONE[machine], flags) == ALLOWED
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(machine, CLONE[machine], namespace | 17) == "EPERM"


@machines
def test_socket_families(machine: str) -> None:
    decisions = {family: decide(machine, SOCKET[machine], family) for family in range(50)}
    assert {family for family, decision in decisions.items() if decision == ALLOWED} == {1, 2, 10}
    assert set(decisions.values()) == {ALLOWED, "EAFNOSUPPORT"}


@machines
def test_another_architectures_calls_kill(machine: str) -> None:
    assert decide(machine, READ[machine], audit=0x40000003) == KILLED


def test_the_x32_table_is_closed() -> None:
    assert decide("x86_64", 0x40000000 + UNSHARE["x86_64"]) == "ENOSYS"


def test_an_architecture_without_a_filter_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="riscv64"):
        syscall_filter("riscv64")
