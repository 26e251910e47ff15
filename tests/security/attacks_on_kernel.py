"""System calls that make sandboxes, break them or widen what can be attacked. A call counts as refused only when the
kernel does not even look at its arguments: an error about these is an escape."""

from __future__ import annotations

import textwrap
from typing import Final

from tests.security.attack import Attack, Wall

# Numbers on x86-64 and aarch64; from 424 on they are the same.
_CALL: Final = textwrap.dedent("""
    import ctypes, errno, platform
    numbers = {
        "clone": (56, 220), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
        "pivot_root": (155, 41), "chroot": (161, 51), "keyctl": (250, 219), "add_key": (248, 217),
        "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
        "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
        "reboot": (169, 142), "swapon": (167, 224), "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116),
        "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "memfd_create": (319, 279),
        "shmget": (29, 194), "mlockall": (151, 230), "mq_open": (240, 180), "sethostname": (170, 161),
        "clock_settime": (227, 112), "capset": (126, 91), "setuid": (105, 146), "setresgid": (119, 149),
        "setgroups": (116, 159),
        "io_uring_setup": (425,) * 2, "io_uring_enter": (426,) * 2, "io_uring_register": (427,) * 2,
        "open_tree": (428,) * 2, "move_mount": (429,) * 2, "fsopen": (430,) * 2, "fsmount": (432,) * 2,
        "fspick": (433,) * 2, "clone3": (435,) * 2, "mount_setattr": (442,) * 2, "memfd_secret": (447,) * 2,
    }
    libc = ctypes.CDLL(None, use_errno=True)
    def call(name, *arguments, refusals=(errno.EPERM, errno.EACCES, errno.ENOSYS)):
        def action():
            result = libc.syscall(numbers[name][platform.machine() != "x86_64"], *arguments)
            number = ctypes.get_errno()
            if result == -1 and number in refusals: raise OSError(number, os.strerror(number))
            return result, errno.errorcode.get(number)
        attempt(name, action)
    spaces = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000,
              "pid": 0x20000000, "net": 0x40000000}
""")


def _calls(name: str, tries: str, *walls: Wall, program: str, machine: str = "") -> Attack:
    return Attack(name=name, tries=tries, walls=walls, program=_CALL + textwrap.dedent(program), machine=machine)


ATTACKS: Final = (
    _calls("unshare", "move into new namespaces, alone and together with a new user namespace",
           Wall.CALLS, Wall.RIGHTS, program="""
        for flag in spaces.values():
            call("unshare", flag)
            call("unshare", flag | spaces["user"])
    """),
    _calls("clone", "start a child in new namespaces", Wall.CALLS, Wall.RIGHTS, program="""
        for flag in spaces.values():
            call("clone", flag | spaces["user"] | 17, 0, 0, 0, 0)
        # libc would use it, with flags that a filter can't see: it has to be missing altogether.
        call("clone3", 0, 0)
    """),
    _calls("join-namespaces", "enter the namespaces of the first process and of itself",
           Wall.CALLS, Wall.PROCESSES, program="""
        for process in (1, "self"):
            for space in ("mnt", "net", "pid", "user"):
                try: descriptor = os.open(f"/proc/{process}/ns/{space}", os.O_RDONLY)
                except OSError as error: print("REFUSED", error)
                else: call("setns", descriptor, 0)
    """),
    _calls("mount", "mount, unmount, change the root", Wall.CALLS, Wall.RIGHTS, program="""
        call("mount", b"none", b"/tmp", b"tmpfs", 0, 0)
        call("mount", b"none", b"/", None, 1 << 5, 0)
        call("mount", b"proc", b"/tmp", b"proc", 0, 0)
        call("umount2", b"/proc", 2)
        call("pivot_root", b"/tmp", b"/tmp")
        call("chroot", b"/tmp")
    """),
    _calls("new-mount-calls", "the same by the calls of newer kernels", Wall.CALLS, Wall.RIGHTS, program="""
        call("fsopen", b"tmpfs", 0)
        call("open_tree", -100, b"/", 1)
        call("move_mount", -1, b"", -1, b"", 0)
        call("fsmount", -1, 0, 0)
        call("fspick", -100, b"/", 0)
        call("mount_setattr", -100, b"/", 0, 0, 0)
    """),
    _calls("keyrings", "keep and read keys of the kernel, which no namespace holds", Wall.CALLS, program="""
        call("keyctl", 0, -3, 1)
        call("add_key", b"user", b"name", b"data", 4, -3)
        call("request_key", b"user", b"name", 0, -3)
    """),
    _calls("bpf", "load a program into the kernel", Wall.CALLS, Wall.RIGHTS, program='call("bpf", 0, 0, 0)'),
    _calls("performance-events", "watch other processes and the kernel by performance counters",
           Wall.CALLS, Wall.RIGHTS, program="""
        call("perf_event_open", (1).to_bytes(4, "little") + (112).to_bytes(4, "little") + bytes(104), 0, -1, -1, 0)
    """),
    _calls("page-faults", "handle page faults of the kernel, a tool of its exploits", Wall.CALLS, program="""
        call("userfaultfd", 0)
        call("userfaultfd", 1)
        attempt("device", lambda: os.open("/dev/userfaultfd", os.O_RDWR))
    """),
    _calls("io-uring", "system calls by a queue that no filter sees", Wall.CALLS, program="""
        call("io_uring_setup", 1, bytes(120))
        call("io_uring_enter", -1, 0, 0, 0, 0)
        call("io_uring_register", -1, 0, 0, 0)
    """),
    _calls("kernel-modules", "load and remove kernel modules, start another kernel",
           Wall.CALLS, Wall.RIGHTS, program="""
        call("init_module", b"", 0, b"")
        call("finit_module", -1, b"", 0)
        call("delete_module", b"no-such-module", 0)
        call("kexec_load", 0, 0, 0, 0)
    """),
    _calls("system-state", "restart, swap, accounting, quotas, clock, host name", Wall.CALLS, Wall.RIGHTS, program="""
        call("reboot", 0, 0, 0, 0)
        call("swapon", b"/tmp", 0)
        call("acct", b"/tmp/no-such-file")
        call("quotactl", 0, 0, 0, 0)
        call("clock_settime", 0, bytes(16))
        call("sethostname", b"x", 1)
    """),
    _calls("kernel-log", "read the kernel's log and the addresses of its code", Wall.CALLS, Wall.RIGHTS, program="""
        call("syslog", 3, ctypes.create_string_buffer(4096), 4096)
        with open("/proc/kallsyms") as file: check("addresses", int(next(file).split()[0], 16) != 0)
    """),
    _calls("file-handles", "open files by number instead of by path, as in the Shocker exploit",
           Wall.CALLS, Wall.RIGHTS, program="""
        handle = ctypes.create_string_buffer((64).to_bytes(4, "little") + bytes(68))
        call("name_to_handle_at", -100, b"/tmp", handle, ctypes.byref(ctypes.c_int()), 0)
        call("open_by_handle_at", os.open("/", 0), handle, 0)
    """),
    _calls("uncounted-memory", "memory that no limit counts: anonymous files, shared segments, locked pages, queues",
           Wall.CALLS, Wall.LIMITS, program="""
        call("memfd_create", b"x", 0)
        call("memfd_secret", 0)
        call("shmget", 0, 1 << 20, 0o1600)
        call("mlockall", 2)
        call("mq_open", b"queue", 0o102, 0o600, 0, refusals=(errno.EPERM, errno.ENOSYS, errno.EMFILE))
    """),
    _calls("other-users", "become root, or a member of any group", Wall.RIGHTS, program="""
        # EINVAL: in its user namespace there is nobody else.
        for name in ("setuid", "setgroups"): call(name, 0, 0, refusals=(errno.EPERM, errno.EINVAL))
        call("setresgid", 0, 0, 0, refusals=(errno.EPERM, errno.EINVAL))
        for path in ("/proc/self/uid_map", "/proc/self/gid_map"):
            attempt(path, lambda: os.write(os.open(path, os.O_WRONLY), b"0 0 1"))
    """),
    _calls("capabilities", "hold or take capabilities, and get rid of the filter", Wall.RIGHTS, Wall.CALLS, program="""
        everything = (0x20080522).to_bytes(4, "little") + bytes(4), b"\\xff\\xff\\xff\\xff" * 6
        call("capset", *everything)
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            check(name, int(status[name], 16) != 0)
        check("new privileges", status["NoNewPrivs"].strip() != "1")
        check("no filter", status["Seccomp"].strip() != "2")
        check("filter switched off", libc.prctl(22, 0, 0, 0, 0) == 0)
    """),
    _calls("setuid-files", "become root by the system's setuid programs or one of its own", Wall.RIGHTS, program="""
        import shutil, subprocess
        options = {line.split()[4]: line.split()[5].split(",") for line in open("/proc/self/mountinfo")}
        check("mounts that honour setuid", [path for path in options if "nosuid" not in options[path]])
        shutil.copy("/usr/bin/id", "mine")
        os.chmod("mine", 0o6755)
        for command in (["./mine", "-u"], ["/usr/bin/su", "-c", "id -u"], ["/usr/bin/newgrp", "root"]):
            try: answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
            except OSError as error: print("REFUSED", error)
            else: check(command[0], answer.split() == ["0"])
    """),
    _calls("other-tables", "system calls by the tables of the x32 and the 32-bit interface, where numbers differ",
           Wall.CALLS, machine="x86_64", program="""
        import mmap
        code = mmap.mmap(-1, 4096, prot=7)
        code.write(bytes.fromhex("b814000000 cd80 c3"))  # mov eax, 20 (getpid); int 0x80; ret
        interrupt = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        for name, getpid in (("x32", lambda: libc.syscall(0x40000000 | 39)), ("32-bit", interrupt)):
            child = os.fork()
            if child == 0: os._exit(getpid() == os.getpid())
            # It is killed, or gets no number.
            check(name, os.waitpid(child, 0)[1] == 1 << 8)
    """),
)  # fmt: skip
