"""A seccomp filter in classic BPF: system calls that no program under test needs and that widen what it can attack.

Namespaces, capabilities and rlimits are the walls. This takes away the tools against them (new namespaces, mounts,
ptrace, io_uring, bpf, keyrings), memory that no limit counts (memfd, System V shared memory), and sockets that a
network namespace does not hold back (vsock). Source: seccomp(2), ``struct seccomp_data`` and the return values.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from privcode.errors import SandboxUnavailable

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; low word of the argument

_KILL: Final = 0x80000000
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000

_NEW_NAMESPACES: Final = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_SOCKET_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_X32: Final = 0x40000000

# Calls from 424 on have the same number on every architecture.
_COMMON: Final = (
    *(425, 426, 427),  # io_uring_setup, io_uring_enter, io_uring_register
    *(428, 429, 430, 431, 432, 433, 442),  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr
    447,  # memfd_secret
)


@dataclass(frozen=True)
class _Architecture:
    audit: int
    clone: int
    socket: int
    denied: tuple[int, ...]


_ARCHITECTURES: Final[Mapping[str, _Architecture]] = MappingProxyType(
    {
        "x86_64": _Architecture(
            audit=0xC000003E,
            clone=56,
            socket=41,
            denied=(
                *(101, 310, 311, 312),  # ptrace, process_vm_readv, process_vm_writev, kcmp
                *(29, 319),  # shmget, memfd_create
                *(248, 249, 250),  # add_key, request_key, keyctl
                *(298, 321, 323),  # perf_event_open, bpf, userfaultfd
                *(155, 165, 166, 179),  # pivot_root, mount, umount2, quotactl
                *(272, 308),  # unshare, setns
                *(103, 163, 167, 168, 169),  # syslog, acct, swapon, swapoff, reboot
                *(175, 176, 246, 313, 320),  # init_module, delete_module, kexec_load, finit_module, kexec_file_load
                *(303, 304),  # name_to_handle_at, open_by_handle_at
            ),
        ),
        "aarch64": _Architecture(
            audit=0xC00000B7,
            clone=220,
            socket=198,
            denied=(
                *(117, 270, 271, 272),
                *(194, 279),
                *(217, 218, 219),
                *(241, 280, 282),
                *(41, 40, 39, 60),
                *(97, 268),
                *(116, 89, 224, 225, 142),
                *(105, 106, 104, 273, 294),
                *(264, 265),
            ),
        ),
    }
)
_CLONE3: Final = 435


def syscall_filter(machine: str | None = None) -> bytes:
    """The filter as an array of ``struct sock_filter``, for ``bwrap --seccomp``. ``machine``: default this one.

    Raises :class:`SandboxUnavailable` where there is no filter for the machine's architecture.
    """
    machine = machine or platform.machine()
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        raise SandboxUnavailable(f"no system call filter for the architecture {machine}")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _instructions(architecture))


def _instructions(architecture: _Architecture) -> Iterator[tuple[int, int, int, int]]:
    """(code, jump if true, jump if false, k); jumps count the instructions to skip."""
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _IF_EQUAL, 1, 0, architecture.audit
    yield _RETURN, 0, 0, _KILL
    yield _LOAD, 0, 0, _NUMBER
    # The x32 table has other numbers for the same calls.
    yield _IF_AT_LEAST, 0, 1, _X32
    yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    for number in (*architecture.denied, *_COMMON):
        yield _IF_EQUAL, 0, 1, number
        yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    # Its flags are behind a pointer, which a filter can't follow; libc falls back to clone.
    yield _IF_EQUAL, 0, 1, _CLONE3
    yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    yield _IF_EQUAL, 0, 4, architecture.clone
    yield _LOAD, 0, 0, _FIRST_ARGUMENT
    yield _IF_ANY_BIT, 0, 1, _NEW_NAMESPACES
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    yield _RETURN, 0, 0, _ALLOW
    yield _IF_EQUAL, 0, 2 + len(_SOCKET_FAMILIES), architecture.socket
    yield _LOAD, 0, 0, _FIRST_ARGUMENT
    for position, family in enumerate(_SOCKET_FAMILIES):
        yield _IF_EQUAL, len(_SOCKET_FAMILIES) - position, 0, family
    yield _RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT
    yield _RETURN, 0, 0, _ALLOW
