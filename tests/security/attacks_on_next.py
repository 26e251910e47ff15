"""Leaving something behind for the execution that comes next: in start files, or in a warm interpreter.

What is left says ESCAPED only in another program than its own, which it tells by the ``__main__`` module.
"""

from __future__ import annotations

import textwrap
from typing import Final

from tests.security.attack import Attack, Wall

_GHOST: Final = textwrap.dedent("""
    mine = sys.modules["__main__"]
    def ghost(*_, **__):
        if sys.modules["__main__"] is not mine: os.write(1, b"ESCAPED into the next program\\n")
""")


def _poison(name: str, tries: str, program: str, then: str = "print('TRIES', 'nothing')") -> Attack:
    program = _GHOST + textwrap.dedent(program) + "print('TRIES', 'to poison')\n"
    return Attack(name=name, tries=tries, walls=(Wall.FRESH,), program=program, then=then)


ATTACKS: Final = (
    _poison("builtins", "replace built-in functions", """
        import builtins
        old = builtins.len, builtins.open, builtins.__import__, builtins.__build_class__
        def wrap(function): return lambda *a, **k: (ghost(), function(*a, **k))[1]
        builtins.len, builtins.open, builtins.__import__, builtins.__build_class__ = map(wrap, old)
    """, """
        import json
        class Class: pass
        check("built-in functions replaced", type(len) is not type(print) or isinstance(open, types.FunctionType))
    """),
    _poison("patched-modules", "replace functions of the standard library", """
        import json, math, random, subprocess
        json.loads = math.sqrt = random.random = subprocess.run = os.getpid = time.time = ghost
    """, """
        import json, math, random, subprocess
        check("functions replaced", (json.loads("1"), math.sqrt(4), callable(random.random)) != (1, 2.0, True))
        check("processes", subprocess.run(["/bin/true"]).returncode != 0 or not os.getpid())
    """),
    _poison("patched-classes", "replace methods of classes and of exceptions", """
        import collections, decimal, json
        json.JSONEncoder.default = collections.Counter.most_common = decimal.Decimal = ghost
        json.JSONDecodeError.__init__ = ghost
    """, """
        import collections, decimal, json
        check("methods", collections.Counter("a").most_common() != [("a", 1)] or decimal.Decimal(1) != 1)
        try: json.loads("{")
        except json.JSONDecodeError as error: check("exceptions", error.pos != 1)
    """),
    _poison("false-modules", "put false modules, finders, path entries and codecs in", """
        import codecs
        for name in ("string", "this_is_not_a_module", "heapq"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].false = True
        sys.meta_path.insert(0, types.SimpleNamespace(find_spec=ghost))
        sys.path_hooks.insert(0, ghost)
        sys.path.insert(0, "/tmp")
        codecs.register(ghost)
    """, """
        import heapq, string, wave
        check("modules", hasattr(heapq, "false") or hasattr(string, "false") or "this_is_not_a_module" in sys.modules)
        check("finders", any(isinstance(finder, types.SimpleNamespace) for finder in sys.meta_path))
        check("path", "/tmp" in sys.path)
        attempt("codec", lambda: "".encode("no-such-codec"), LookupError)
    """),
    _poison("hooks", "have the interpreter call it: trace, profile, audit, exceptions, collection of garbage", """
        import gc, threading
        sys.settrace(ghost); sys.setprofile(ghost); threading.settrace(ghost); threading.setprofile(ghost)
        sys.addaudithook(ghost)
        sys.excepthook = sys.unraisablehook = sys.displayhook = sys.breakpointhook = threading.excepthook = ghost
        gc.callbacks.append(ghost)
    """, """
        import gc, threading
        gc.collect()
        threading.Thread(target=int, args=("not a number",)).start()
        check("hooks", sys.gettrace() or sys.getprofile() or sys.excepthook is not sys.__excepthook__)
    """),
    _poison("exit-handlers", "run when the next program ends", """
        import atexit, threading, weakref
        atexit.register(ghost)
        threading._register_atexit(ghost)
        os.register_at_fork(before=ghost, after_in_parent=ghost, after_in_child=ghost)
    """, """
        os.waitpid(os.fork() or os._exit(0), 0)
        print("TRIES", "to end")
    """),
    _poison("threads-and-timers", "go on in threads, timers and signal handlers", """
        import signal, threading
        def haunt():
            for _ in range(20): time.sleep(0.05); ghost()
        threading.Thread(target=haunt, daemon=True).start()
        signal.signal(signal.SIGALRM, ghost)
        signal.signal(signal.SIGUSR1, ghost)
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.05)
    """, """
        import signal, threading
        for _ in range(12): time.sleep(0.05)
        check("threads", threading.active_count() != 1)
        check("handlers", signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL)
        check("timers", signal.getitimer(signal.ITIMER_REAL) != (0, 0))
    """),
    _poison("random-state", "know the next program's random numbers", """
        import random, uuid
        random.seed(1); random.seed = ghost
    """, """
        import random
        check("seed", random.random() == random.Random(1).random())
        random.seed(2)
        check("seeding", random.random() != random.Random(2).random())
    """),
    _poison("process-state", "change environment, working directory, umask, limits, priority, standard streams", """
        import decimal, locale, resource, signal, warnings
        os.environ.update(LD_PRELOAD="/tmp/x.so", PYTHONSTARTUP="/tmp/x.py", PYTHONPATH="/tmp", MARK="left")
        os.putenv("MARK", "left")
        os.chdir("/"); os.umask(0o777); os.nice(5)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
        sys.setrecursionlimit(77); sys.setswitchinterval(9); decimal.getcontext().prec = 2
        warnings.simplefilter("error"); sys.argv = ["left"]
        os.close(0)
    """, """
        import decimal, resource, signal, subprocess
        check("environment", {"MARK", "LD_PRELOAD", "PYTHONSTARTUP", "PYTHONPATH"} & set(os.environ))
        check("of children", b"MARK" in subprocess.run(["/usr/bin/env"], stdout=subprocess.PIPE).stdout)
        check("directory", os.getcwd() == "/")
        check("umask", os.umask(0) == 0o777)
        check("priority", os.nice(0) >= 5)
        check("signals", signal.pthread_sigmask(signal.SIG_BLOCK, []))
        check("limits", resource.getrlimit(resource.RLIMIT_NOFILE)[1] == 20)
        check("interpreter", sys.getrecursionlimit() == 77 or decimal.getcontext().prec == 2 or sys.argv == ["left"])
        check("input", not os.path.exists("/proc/self/fd/0"))
    """),
    _poison("memory-of-the-interpreter", "write to the memory of objects that all programs share", """
        import ctypes, gc
        # The cached number 200, and a method of the type str.
        ctypes.memmove(id(200) + 24, (201).to_bytes(4, "little"), 4)
        gc.get_referents(str.__dict__)[0]["upper"] = ghost
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(str))
    """, """
        check("a number", int("200") - 100 != 100)
        check("a method", "a".upper() != "A")
    """),
    _poison("bytecode", "leave compiled code and packages where the interpreter looks for them", """
        import site, py_compile
        folders = [os.path.dirname(os.__file__), os.path.join(os.path.dirname(os.__file__), "__pycache__"),
                   *site.getsitepackages(), site.getusersitepackages(), os.path.expanduser("~"), os.getcwd()]
        for folder in folders:
            for name in ("sitecustomize.py", "usercustomize.py", "evil.pth", "antigravity.py", ".pythonrc", "json.py"):
                try:
                    os.makedirs(folder, exist_ok=True)
                    open(os.path.join(folder, name), "w").write("import os; os.write(1, b'ESCAPED\\\\n')")
                except OSError as error: print("REFUSED", error)
    """, """
        import subprocess
        command = [sys.executable, "-c", "import json; print('TRIES', 'to start')"]
        print(subprocess.run(command, capture_output=True, text=True).stdout)
        check("own folder", os.path.exists("sitecustomize.py"))
    """),
    Attack(
        name="start-files",
        tries="start files and modules of the standard library's names among the files of an execution",
        walls=(Wall.FRESH,),
        files={
            f"{name}.py": "import os; os.write(1, b'ESCAPED by a start file\\n')"
            for name in ("sitecustomize", "usercustomize", "json", "random", "string", "encodings/__init__", "conftest")
        },
        program="""
            import json, random, string
            print("TRIES", "to import", sorted(os.listdir("."))[:3])
        """,
    ),
    Attack(
        name="shell-start-files",
        tries="start files, aliases and functions of a shell",
        walls=(Wall.FRESH, Wall.FILES),
        language="shell",
        program="""
            echo "TRIES"
            for file in ~/.bashrc ~/.bash_profile ~/.profile /etc/profile /etc/bash.bashrc /etc/ld.so.preload; do
                echo "echo ESCAPED" 2>&1 >"$file" || true
            done
            export BASH_ENV=~/.bashrc ENV=~/.bashrc PROMPT_COMMAND="echo ESCAPED"
        """,
        then="""
            echo "TRIES"
            bash --login -c true
            [ -z "$BASH_ENV$ENV" ] && [ ! -e ~/.bashrc ] || echo "ESCAPED"
        """,
    ),
)  # fmt: skip
