"""The system call filter of a program under test: an allow list, compiled to classic BPF by libseccomp.

Namespaces, capabilities and rlimits are the walls. The filter takes away the tools against them and memory that no
limit counts, and leaves as little of the kernel as ten languages' programs can do with. Sources: seccomp(2),
seccomp_rule_add(3) of libseccomp, and what the tool chains were seen to call.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from privcode.errors import SandboxUnavailable

# By purpose. A name that the installed libseccomp does not know is passed over: the call then ends as ENOSYS.
ALLOWED: Final[Mapping[str, str]] = {
    "reading and writing": """
        read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile copy_file_range splice
        tee readahead fadvise64 sync_file_range fsync fdatasync sync syncfs flock fcntl fallocate ftruncate truncate""",
    "descriptors": """
        open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2 eventfd eventfd2 signalfd signalfd4
        timerfd_create timerfd_settime timerfd_gettime inotify_init inotify_init1 inotify_add_watch inotify_rm_watch""",
    "waiting": """
        select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2""",
    "files and folders": """
        stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 getdents getdents64 getcwd chdir
        fchdir mkdir mkdirat rmdir mknod mknodat rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat
        readlink readlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask utime utimes futimesat
        utimensat""",
    "extended attributes": """
        getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr removexattr
        lremovexattr fremovexattr""",
    "memory": """
        brk mmap munmap mremap mprotect msync madvise mincore mlock mlock2 mlockall munlock munlockall membarrier
        get_mempolicy pkey_alloc pkey_free pkey_mprotect mseal map_shadow_stack""",
    "processes and threads": """
        fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid set_tid_address pidfd_open
        pidfd_send_signal set_robust_list get_robust_list futex futex_waitv futex_wait futex_wake futex_requeue rseq
        arch_prctl prctl getpgid getpgrp setpgid getsid setsid""",
    "signals": """
        rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigreturn rt_sigqueueinfo
        rt_tgsigqueueinfo sigaltstack kill tkill tgkill pause restart_syscall""",
    "scheduling": """
        sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler
        sched_setscheduler sched_getattr sched_setattr sched_get_priority_min sched_get_priority_max
        sched_rr_get_interval getpriority setpriority ioprio_get ioprio_set getcpu""",
    "time": """
        time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep alarm getitimer setitimer timer_create
        timer_settime timer_gettime timer_getoverrun timer_delete times""",
    "who and how much": """
        getuid geteuid getgid getegid getresuid getresgid getgroups capget getrusage getrlimit setrlimit prlimit64
        sysinfo uname getrandom""",
    # Without capabilities they change nothing; programs expect the error of each, not of the filter.
    "other identities": """
        setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups""",
    "sockets, of the families below": """
        bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt sendto sendmsg sendmmsg
        recvfrom recvmsg recvmmsg shutdown""",
}  # fmt: skip

# These end as EPERM, as they do for anyone without capabilities; whatever stands nowhere here ends as ENOSYS, to which
# programs and libc have an answer for the sake of older kernels.
REFUSED: Final[Mapping[str, str]] = {
    "new namespaces and mounts": """
        unshare setns mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick
        mount_setattr""",
    "other processes": """
        ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp""",
    "memory that no limit counts": """
        memfd_create memfd_secret shmget msgget semget""",
    "large parts of the kernel": """
        io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd add_key request_key keyctl
        fanotify_init""",
    "files past the mount namespace": """
        name_to_handle_at open_by_handle_at""",
    "the machine": """
        reboot syslog acct swapon swapoff quotactl quotactl_fd init_module finit_module delete_module kexec_load
        kexec_file_load iopl ioperm lookup_dcookie settimeofday clock_settime sethostname setdomainname vhangup""",
}  # fmt: skip

# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}. clone3 is not there at all: its flags are behind a pointer, which a filter
# can't follow; libc falls back to clone.
_NEW_NAMESPACES: Final = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_SOCKET_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_LAST_FAMILY: Final = max(_SOCKET_FAMILIES)
_PERSONALITIES: Final = (0, 0xFFFFFFFF)  # PER_LINUX; "which is it?"

# ioctl(2) is a kernel of its own. FIO* and others on any descriptor, terminals (Python's pty), questions about network
# devices (Java asks), and copies of files by reference.
_IOCTLS: Final = (
    *(0x5421, 0x5450, 0x5451, 0x5452, 0x541B, 0x5460),  # FIONBIO, FIONCLEX, FIOCLEX, FIOASYNC, FIONREAD, FIOQSIZE
    *(0x5401, 0x5402, 0x5403, 0x5404, 0x5405),  # TCGETS, TCSETS, TCSETSW, TCSETSF, TCGETA
    *(0x5409, 0x540A, 0x540B, 0x5425),  # TCSBRK, TCXONC, TCFLSH, TCSBRKP
    *(0x540E, 0x540F, 0x5410, 0x5429, 0x5422),  # TIOCSCTTY, TIOCGPGRP, TIOCSPGRP, TIOCGSID, TIOCNOTTY
    *(0x5411, 0x5413, 0x5414),  # TIOCOUTQ, TIOCGWINSZ, TIOCSWINSZ
    *(0x80045430, 0x40045431, 0x5441),  # TIOCGPTN, TIOCSPTLCK, TIOCGPTPEER
    *(0x8910, 0x8912, 0x8913, 0x8915, 0x8919),  # SIOCGIF{NAME,CONF,FLAGS,ADDR,BRDADDR}
    *(0x891B, 0x891D, 0x8921, 0x8927, 0x8933),  # SIOCGIF{NETMASK,METRIC,MTU,HWADDR,INDEX}
    *(0x40049409, 0x4020940D),  # FICLONE, FICLONERANGE
    *(0x80086601, 0xC020660B),  # FS_IOC_GETFLAGS, FS_IOC_FIEMAP
)
_TYPING_FOR_OTHERS: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_LOW_WORD: Final = 0xFFFFFFFF  # what the kernel looks at; a filter that compares all 64 bits can be walked around

_BINARY_TREE: Final = 2
# Any kernel that the sandbox runs on kills processes; libseccomp would ask it, and gVisor's says no.
_KNOWS_KILL_PROCESS: Final = 3


@dataclass(frozen=True)
class _Rule:
    """``error``: 0 to allow. The condition: argument number ``argument`` & ``mask`` == ``value``, or, without a mask,
    >= ``value``; always, without an argument."""

    call: str
    error: int = 0
    argument: int | None = None
    mask: int | None = None
    value: int = 0


def syscall_filter(machine: str | None = None) -> bytes:
    """The filter as an array of ``struct sock_filter``, for ``bwrap --seccomp``. ``machine``: default this one.

    Calls of another architecture's table, x32 among them, kill the process. Raises :class:`SandboxUnavailable` where
    libseccomp is missing, or there is no filter for the machine's architecture.
    """
    seccomp = _library()
    architectures = {"x86_64": seccomp.Arch.X86_64, "aarch64": seccomp.Arch.AARCH64}
    machine = machine or platform.machine()
    if machine not in architectures:
        raise SandboxUnavailable(f"no system call filter for the architecture {machine}")
    compiled = seccomp.SyscallFilter(seccomp.ERRNO(errno.ENOSYS))
    compiled.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    compiled.set_attr(seccomp.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    if not compiled.exist_arch(architectures[machine]):
        compiled.add_arch(architectures[machine])
        compiled.remove_arch(seccomp.system_arch())
    for rule in _rules():
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, rule.call)
        if number >= 0:
            action = seccomp.ERRNO(rule.error) if rule.error else seccomp.ALLOW
            compiled.add_rule(action, number, *_condition(rule, seccomp))
    with os.fdopen(os.memfd_create("filter"), "rb") as file:
        compiled.export_bpf(file)
        file.seek(0)
        return file.read()


def _library() -> ModuleType:
    try:
        # Looks for the shared library.
        import pyseccomp

        pyseccomp.set_api(_KNOWS_KILL_PROCESS)
    except (ImportError, RuntimeError, OSError) as error:
        raise SandboxUnavailable(
            f"libseccomp can't be used ({error}); on Debian: apt-get install libseccomp2"
        ) from error
    library: ModuleType = pyseccomp
    return library


def _rules() -> Iterator[_Rule]:
    for calls in ALLOWED.values():
        yield from (_Rule(call) for call in calls.split())
    for calls in REFUSED.values():
        yield from (_Rule(call, errno.EPERM) for call in calls.split())
    yield _Rule("clone", argument=0, mask=sum(_NEW_NAMESPACES), value=0)
    for flag in _NEW_NAMESPACES:
        yield _Rule("clone", errno.EPERM, argument=0, mask=flag, value=flag)
    for call in ("socket", "socketpair"):
        for family in range(_LAST_FAMILY + 1):
            error = 0 if family in _SOCKET_FAMILIES else errno.EAFNOSUPPORT
            yield _Rule(call, error, argument=0, mask=_LOW_WORD, value=family)
        yield _Rule(call, errno.EAFNOSUPPORT, argument=0, value=_LAST_FAMILY + 1)
    for request in _IOCTLS:
        yield _Rule("ioctl", argument=1, mask=_LOW_WORD, value=request)
    for request in _TYPING_FOR_OTHERS:
        yield _Rule("ioctl", errno.EPERM, argument=1, mask=_LOW_WORD, value=request)
    for persona in _PERSONALITIES:
        yield _Rule("personality", argument=0, mask=_LOW_WORD, value=persona)


def _condition(rule: _Rule, seccomp: ModuleType) -> list[object]:
    if rule.argument is None:
        return []
    if rule.mask is None:
        return [seccomp.Arg(rule.argument, seccomp.GE, rule.value)]
    return [seccomp.Arg(rule.argument, seccomp.MASKED_EQ, rule.mask, rule.value)]
