"""Reading and writing what is not the program's."""

from __future__ import annotations

from typing import Final

from tests.security.attack import Attack, Wall

ATTACKS: Final = (
    Attack(
        name="host-secret",
        tries="read a file of the host that every user may read",
        walls=(Wall.FILES,),
        program="attempt(host.secret_file, lambda: open(host.secret_file).read())",
    ),
    Attack(
        name="host-folders",
        tries="look at accounts, home folders, logs, run-time state and the project",
        walls=(Wall.FILES,),
        program="""
            for path in ("/etc/passwd", "/etc/shadow", "/root", "/home", "/var", "/run", "/mnt", "/boot", "/usr/local",
                         "/usr/share/doc", host.project, host.secret_file, host.runner_socket):
                attempt(path, lambda: os.lstat(path))
        """,
    ),
    Attack(
        name="installed-packages",
        tries="import what is installed for the runner, and its own code",
        walls=(Wall.FILES,),
        program="""
            for name in ("pip", "pydantic", "privcode", "services.sandbox"):
                attempt(name, lambda: __import__(name), ImportError)
        """,
    ),
    Attack(
        name="root-of-others",
        tries="the host's files through the root and working directory of every process in /proc",
        walls=(Wall.FILES, Wall.PROCESSES),
        program="""
            for process in ("self", 1, os.getppid(), host.runner_pid, "thread-self"):
                for link in ("root", "cwd"):
                    path = f"/proc/{process}/{link}{host.secret_file}"
                    attempt(path, lambda: open(path).read())
        """,
    ),
    Attack(
        name="climbing",
        tries="leave through .., before and after a change of root",
        walls=(Wall.FILES, Wall.RIGHTS),
        program="""
            attempt("..", lambda: open("../" * 40 + host.secret_file[1:]).read())
            os.mkdir("inner")
            attempt("chroot", lambda: os.chroot("inner"))
            descriptor = os.open("/", os.O_RDONLY)
            os.chdir("inner")
            for _ in range(40): os.chdir("..")
            attempt("openat", lambda: os.open(".." + host.secret_file, os.O_RDONLY, dir_fd=descriptor))
        """,
    ),
    Attack(
        name="symbolic-links",
        tries="read, append to and replace a file of the host through symbolic links",
        walls=(Wall.FILES,),
        program="""
            os.symlink(host.secret_file, "link")
            os.symlink(os.path.dirname(host.secret_file), "folder")
            attempt("read", lambda: open("link").read())
            attempt("append", lambda: os.write(os.open("link", os.O_WRONLY | os.O_APPEND), b"x"))
            attempt("list", lambda: os.listdir("folder"))
            attempt("create", lambda: os.open(f"folder/{host.mark}", os.O_WRONLY | os.O_CREAT))
        """,
    ),
    Attack(
        name="hard-links",
        tries="give files of the host and of the system a second name in the working directory",
        walls=(Wall.FILES,),
        program="""
            for path in (host.secret_file, "/usr/bin/env", "/bin/sh", sys.executable):
                attempt(path, lambda: os.link(path, "mine"))
        """,
    ),
    Attack(
        name="disks-and-memory",
        tries="open disks, physical memory, the kernel's log and other devices",
        walls=(Wall.FILES,),
        program="""
            for device in ("sda", "vda", "nvme0n1", "mem", "kmsg", "port", "kvm", "fuse", "net/tun", "loop-control"):
                attempt(device, lambda: os.open(f"/dev/{device}", os.O_RDONLY))
            attempt("/proc/kcore", lambda: os.open("/proc/kcore", os.O_RDONLY))
        """,
    ),
    Attack(
        name="new-devices",
        tries="make device files for the first disk and for physical memory",
        walls=(Wall.RIGHTS, Wall.FILES),
        program="""
            import stat
            for kind, major, minor in ((stat.S_IFBLK, 8, 0), (stat.S_IFBLK, 254, 0), (stat.S_IFCHR, 1, 1)):
                attempt(f"{major}:{minor}", lambda: os.mknod("device", kind | 0o600, os.makedev(major, minor)))
        """,
    ),
    Attack(
        name="write-anywhere",
        tries="create a file in every folder there is",
        walls=(Wall.FILES,),
        program="""
            def writable(folder):
                try:
                    os.close(os.open(os.path.join(folder, host.mark), os.O_WRONLY | os.O_CREAT))
                except OSError:
                    return False
                return True
            for top, folders, _ in os.walk("/"):
                if top.count("/") > 3 or top.startswith("/proc/"): folders.clear()
                if top not in ("/tmp", "/dev/shm") and writable(top): print("ESCAPED", top)
            check("write outside the working directory", False)
        """,
    ),
    Attack(
        name="scratch-of-the-host",
        tries="leave files in /tmp, /var/tmp and /dev/shm of the host",
        walls=(Wall.FILES,),
        program="""
            for folder in ("/tmp", "/var/tmp", "/dev/shm"):
                print("TRIES", folder)
                try: open(f"{folder}/{host.mark}", "x").write("left")
                except OSError as error: print("REFUSED", error)
        """,
    ),
    Attack(
        name="system-files",
        tries="overwrite, rename and delete the program's text, the interpreter, its library and the shell",
        walls=(Wall.FILES,),
        program="""
            for path in (__file__, os.__file__, sys.executable, "/bin/sh"):
                attempt(f"write {path}", lambda: open(path, "r+b"))
                attempt(f"rename {path}", lambda: os.rename(path, path + ".old"))
                attempt(f"chmod {path}", lambda: os.chmod(path, 0o777))
        """,
    ),
    Attack(
        name="own-executable",
        tries="overwrite the running executable through /proc, as in CVE-2019-5736",
        walls=(Wall.FILES, Wall.PROCESSES),
        program="""
            for process in ("self", 1, host.runner_pid):
                attempt(f"exe of {process}", lambda: os.open(f"/proc/{process}/exe", os.O_RDWR))
        """,
    ),
    Attack(
        name="environment",
        tries="find secrets in the environment of itself and of every process",
        walls=(Wall.PROCESSES, Wall.PROTOCOL),
        program="""
            import glob
            check("variables of the host", "PRIVCODE_DATABASE_URL" in os.environ)
            for path in glob.glob("/proc/*/environ"):
                print("TRIES", path)
                try: text = open(path, "rb").read()
                except OSError as error: print("REFUSED", error)
                else: check(f"secrets in {path}", b"secret" in text)
        """,
    ),
    Attack(
        name="inherited-descriptors",
        tries="use descriptors that were open in the process that started it",
        walls=(Wall.PROTOCOL,),
        program="""
            for descriptor in range(3, 256):
                try: os.fstat(descriptor)
                except OSError: continue
                print("ESCAPED", descriptor, os.readlink(f"/proc/self/fd/{descriptor}"))
            check("any descriptor but the three", False)
        """,
    ),
    Attack(
        name="input-as-storage",
        tries="change standard input, and the program's text through it",
        walls=(Wall.PROTOCOL,),
        program="""
            attempt("reopen", lambda: os.write(os.open("/proc/self/fd/0", os.O_RDWR), b"x"))
            attempt("write", lambda: os.write(0, b"x"))
            attempt("enlarge", lambda: os.truncate("/proc/self/fd/0", 1 << 20))
        """,
    ),
    Attack(
        name="kernel-settings",
        tries="write to /proc: core pattern, host name, caches, magic keys, out-of-memory order, user mapping",
        walls=(Wall.FILES, Wall.RIGHTS),
        program="""
            def write(path, text):
                descriptor = os.open(path, os.O_WRONLY)
                return os.write(descriptor, text)
            for path, text in (
                ("/proc/sys/kernel/core_pattern", b"|/tmp/x"), ("/proc/sys/kernel/hostname", b"x"),
                ("/proc/sys/vm/drop_caches", b"0"), ("/proc/sysrq-trigger", b""), ("/proc/self/oom_score_adj", b"-999"),
                ("/proc/1/oom_score_adj", b"-999"), ("/proc/self/uid_map", b"0 0 1"), ("/proc/1/uid_map", b"0 0 1"),
                ("/proc/self/setgroups", b"allow"), ("/proc/irq/0/smp_affinity", b"1"),
            ):
                attempt(path, lambda: write(path, text))
        """,
    ),
    Attack(
        name="kernel-objects",
        tries="see /sys, and control groups and devices through it",
        walls=(Wall.FILES,),
        program="""
            for path in ("/sys", "/sys/fs/cgroup", "/sys/kernel", "/sys/class/net", "/sys/block"):
                attempt(path, lambda: os.listdir(path))
        """,
    ),
    Attack(
        name="odd-names",
        tries="leave names with newlines, escapes, invalid text, and deep, looping or blocking files behind",
        walls=(Wall.FILES,),
        program="""
            names = (b"a\\nb", b"\\x1b]0;title\\x07", b"\\xff\\xfe", b"-rf", b"$(id)", b"x" * 255)
            for name in names: os.close(os.open(name, os.O_CREAT))
            os.symlink("loop", "loop")
            os.mkfifo("fifo")
            for _ in range(200): os.mkdir("d"); os.chdir("d")
            print("TRIES", len(names), "names")
        """,
        then="check('files of the execution before', b'loop' in os.listdir(b'.') + os.listdir(b'/tmp'))",
    ),
    Attack(
        name="include-at-compile-time",
        tries="have the compiler read the host's files",
        walls=(Wall.FILES,),
        language="cpp",
        program="""
            #include <cstdio>
            int main() {
                std::puts("TRIES /etc/passwd");
            #if __has_include("/etc/passwd") || __has_include("/etc/shadow") || __has_include("/proc/1/root/etc/passwd")
                std::puts("ESCAPED");
            #endif
            }
        """,
    ),
    Attack(
        name="another-language",
        tries="read the host's files from another interpreter than Python",
        walls=(Wall.FILES,),
        language="javascript",
        program="""
            const fs = require("fs");
            for (const path of ["/etc/passwd", "/etc/shadow", "/root", "/proc/1/root/etc/passwd"]) {
                console.log("TRIES", path);
                try { fs.statSync(path); console.log("ESCAPED", path); }
                catch (error) { console.log("REFUSED", error.code); }
            }
        """,
    ),
)
