"""Escape suite: hostile programs against the real runner over real bubblewrap."""

from __future__ import annotations

import json
import os
import re
import socket
import textwrap
import time
import uuid
from pathlib import Path

import psutil
import pytest
from sandbox_runner import Run, Runner, output_of

from privcode.results import Outcome
from privcode.sandbox import Execution, RunnerClient
from privcode.specs import ExecutionLimits


def test_no_network(run: Run) -> None:
    devices = output_of(run("print([line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line])"))
    assert devices == "['lo']\n"
    code = """
        import socket
        for address in ("1.1.1.1", "10.0.0.1", "169.254.169.254"):
            try:
                socket.create_connection((address, 80), timeout=2)
            except OSError as error:
                print(error.strerror)
        try:
            socket.getaddrinfo("pypi.org", 443)
        except OSError:
            print("no names")
    """
    assert output_of(run(code)) == "Network is unreachable\n" * 3 + "no names\n"


def test_services_of_the_host_are_out_of_reach(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        name = f"\0privcode-{uuid.uuid4()}"
        abstract.bind(name)
        abstract.listen()
        code = f"""
            import socket
            tcp, unix = ("127.0.0.1", {server.getsockname()[1]}), {name!r}
            for family, address in ((socket.AF_INET, tcp), (socket.AF_UNIX, unix)):
                try:
                    socket.socket(family).connect(address)
                except OSError as error:
                    print(error.strerror)
        """
        assert output_of(run(code)) == "Connection refused\n" * 2


@pytest.mark.parametrize("family", [16, 17, 38, 40], ids=["netlink", "packet", "alg", "vsock"])
def test_other_kinds_of_socket_are_refused(run: Run, family: int) -> None:
    code = f"import socket\ntry: socket.socket({family}, socket.SOCK_RAW)\nexcept OSError as error: print(error.errno)"
    assert output_of(run(code)) == "97\n"


def test_it_sees_its_own_processes_only(run: Run) -> None:
    code = """
        import os
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        print(pids, os.getpid(), os.getppid())
    """
    assert output_of(run(code)) == "[1, 2] 2 1\n"


def test_its_environment_is_its_own(run: Run) -> None:
    names = json.loads(output_of(run("import json, os; print(json.dumps(sorted(os.environ)))")))
    assert set(names) <= {"HOME", "LANG", "LC_CTYPE", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX", "PATH", "PWD", "TMPDIR"}


def test_it_has_no_descriptors_but_its_three(run: Run) -> None:
    code = """
        import os
        print([int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")])
    """
    assert output_of(run(code)) == "[0, 1, 2]\n"


def test_host_files_are_not_there(run: Run, runner: Runner) -> None:
    here = Path(__file__).resolve()
    paths = ["/etc/passwd", "/etc/shadow", "/root", "/home", "/var", "/run", "/sys", "/mnt", "/usr/local", "/boot"]
    paths += [str(path) for path in (here, here.parents[2], runner.socket, Path.home())]
    paths += ["/dev/mem", "/dev/sda", "/dev/vda", "/dev/kmsg"]
    code = f"import os\nprint([path for path in {paths!r} if os.path.lexists(path)], sorted(os.listdir('/')))"
    seen, top = re.fullmatch(r"(\[.*?\]) (\[.*\])\n", output_of(run(code))).groups()
    assert seen == "[]"
    assert set(json.loads(top.replace("'", '"'))) <= {
        "bin", "dev", "lib", "lib32", "lib64", "opt", "proc", "program", "tmp", "usr",
    }  # fmt: skip


def test_nothing_can_be_written_but_the_working_directory(run: Run) -> None:
    code = """
        import os
        def writable(folder):
            try:
                with open(os.path.join(folder, "new"), "w"): return True
            except OSError:
                return False
        found = set()
        for top, folders, _ in os.walk("/"):
            if top.count("/") > 3 or top.startswith("/proc/"): folders.clear()
            if writable(top): found.add(top)
        kernel = ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern")
        for file in ("/program/main.py", "/bin/sh", os.__file__, *kernel):
            try:
                open(file, "r+b").close()
                found.add(file)
            except OSError:
                pass
        print(sorted(found))
    """
    assert output_of(run(code, time_limit_s=20)) == "['/dev/shm', '/tmp']\n"


def test_shared_memory_is_bounded(run: Run) -> None:
    result = run("open('/dev/shm/x', 'wb').write(bytes(4 << 20))")
    assert (result.outcome, "No space left" in result.stderr) == (Outcome.FAILED, True)


def test_standard_input_can_not_be_used_as_storage(run: Run) -> None:
    result = run("open('/proc/self/fd/0', 'wb').write(b'x')", stdin="input")
    assert (result.outcome, "PermissionError" in result.stderr) == (Outcome.FAILED, True)


def test_no_rights(run: Run) -> None:
    status = dict(
        line.split(":", 1) for line in output_of(run("print(open('/proc/self/status').read())")).splitlines() if line
    )
    assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    assert status["Uid"].split() == ["65534"] * 4
    assert set(status["Groups"].split()) <= {"65534"}


def test_setuid_gains_nothing(run: Run) -> None:
    code = """
        import os, shutil, subprocess
        for call in (os.setuid, os.setgid):
            try: call(0)
            except OSError as error: print(error.errno)
        shutil.copy("/usr/bin/id", "mine")
        os.chmod("mine", 0o6755)
        print(subprocess.run(["./mine", "-u"], capture_output=True, text=True).stdout.strip())
        mounts = [line.split()[4] for line in open("/proc/self/mountinfo")]
        print([mount for mount in mounts if not os.statvfs(mount).f_flag & os.ST_NOSUID])
    """
    assert output_of(run(code)) == "22\n22\n65534\n[]\n"


FORBIDDEN_CALLS = """
    import ctypes, errno, platform
    libc = ctypes.CDLL(None, use_errno=True)
    x86 = platform.machine() == "x86_64"
    flags = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000}
    calls = {f"unshare {name}": (272 if x86 else 97, flag) for name, flag in flags.items()}
    calls |= {f"clone {name}": (56 if x86 else 220, flag | 17, 0, 0, 0, 0) for name, flag in flags.items()}
    calls |= {
        "mount": (165 if x86 else 40, 0, 0, 0, 0, 0),
        "ptrace": (101 if x86 else 117, 16, 1, 0, 0),
        "process_vm_readv": (310 if x86 else 270, 1, 0, 0, 0, 0, 0),
        "memfd_create": (319 if x86 else 279, b"x", 0),
        "shmget": (29 if x86 else 194, 0, 4096, 0o1600),
        "keyctl": (250 if x86 else 219, 0, -3, 0),
        "bpf": (321 if x86 else 280, 0, 0, 0),
        "userfaultfd": (323 if x86 else 282, 0),
        "perf_event_open": (298 if x86 else 241, 0, 0, 0, 0, 0),
        "io_uring_setup": (425, 1, 0),
        "open_by_handle_at": (304 if x86 else 265, 0, 0, 0),
        "reboot": (169 if x86 else 142, 0, 0, 0, 0),
        "clone3": (435, 0, 0),
    }
    for name, arguments in calls.items():
        result = libc.syscall(*arguments)
        print(name, result, errno.errorcode.get(ctypes.get_errno()))
"""


def test_system_calls_that_break_sandboxes_are_refused(run: Run) -> None:
    lines = output_of(run(FORBIDDEN_CALLS)).splitlines()
    assert len(lines) == 21
    assert [line for line in lines[:-1] if not line.endswith(" -1 EPERM")] == []
    assert lines[-1] == "clone3 -1 ENOSYS"


def test_signals_reach_nobody_else(run: Run, runner: Runner) -> None:
    code = f"""
        import os, signal
        for pid in (1, os.getppid()):
            os.kill(pid, signal.SIGKILL)
        for pid in ({os.getpid()}, {runner.process.pid}):
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: print("nobody")
    """
    assert output_of(run(code)) == "nobody\n" * 2
    assert runner.process.poll() is None


def processes_with(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if mark in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_daemons_die_with_the_program(run: Run) -> None:
    mark = f"mark-{uuid.uuid4()}"
    code = f"""
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv("/bin/sh", ["sh", "-c", "sleep 120; true", {mark!r}])
            os._exit(0)
        time.sleep(0.3)
        print([1 for p in os.listdir("/proc") if p.isdigit() and {mark!r} in open(f"/proc/{{p}}/cmdline").read()])
    """
    began = time.monotonic()
    assert output_of(run(code, time_limit_s=30)) == "[1]\n"
    assert time.monotonic() - began < 5
    assert processes_with(mark) == []


def test_a_killed_program_leaves_no_process(run: Run) -> None:
    mark = f"mark-{uuid.uuid4()}"
    code = f"import os\nos.fork()\nos.fork()\nos.execv('/bin/sh', ['sh', '-c', 'while :; do sleep 9; done', {mark!r}])"
    assert run(code, time_limit_s=0.5).outcome is Outcome.TIMED_OUT
    assert processes_with(mark) == []


def test_links_and_odd_files_are_harmless(run: Run) -> None:
    code = """
        import os
        for number, target in enumerate(("/etc/passwd", "/proc/1/root", "../../../../root", "/program/main.py")):
            os.symlink(target, f"link{number}")
        os.mkfifo("fifo")
        for call in (
            lambda: open("link0").read(),
            lambda: os.listdir("link1/root"),
            lambda: os.listdir("link2"),
            lambda: open("link3", "w"),
            lambda: os.mknod("device", 0o060600, 0x0801),
        ):
            try: print("worked", call())
            except OSError: pass
        os.symlink("loop", "loop")
        deep = "d"
        for _ in range(200):
            os.mkdir("d"); os.chdir("d")
    """
    assert output_of(run(code)) == ""


def test_two_executions_do_not_see_each_other(runner: Runner) -> None:
    code = """
        import os, socket, time
        open("/tmp/mine", "x").close()
        open("/dev/shm/mine", "x").close()
        server = socket.socket(); server.bind(("127.0.0.1", 5000)); server.listen()
        time.sleep(0.5)
        print(len([p for p in os.listdir("/proc") if p.isdigit()]), os.listdir("/tmp"))
    """
    executions = [Execution(id=name, language="python", code=textwrap.dedent(code)) for name in "abcd"]
    results = list(RunnerClient(runner.socket).run(executions, limits=ExecutionLimits()))
    assert sorted(result.id for result in results) == list("abcd")
    assert {output_of(result) for result in results} == {"2 ['mine']\n"}


def test_a_program_can_not_forge_the_start_or_the_status(run: Run) -> None:
    code = """
        import os
        for descriptor in range(3, 256):
            for data in (b".", b'{ "exit-code": 0 }\\n'):
                try: os.write(descriptor, data)
                except OSError: pass
        os._exit(7)
    """
    result = run(code)
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.FAILED, 7, "")
