"""The system call filter of a container that holds the runner: what programs may call, and what sandboxing them takes.

``python -m services.sandbox.core.container_profile > services/sandbox/seccomp-container.json`` for engines and
Kubernetes, in the format of the OCI runtime specification, which Docker reads as well.
"""

from __future__ import annotations

import errno
import json
from typing import Any, Final

from services.sandbox.core.seccomp import ALLOWED

# bwrap's and the zygote's namespaces, mounts and renouncing; the runner's sealed files. Each is checked by the kernel
# for capabilities, which the container has none of outside the user namespaces that they make.
_SANDBOXING: Final = """
    clone unshare setns mount umount2 pivot_root chroot sethostname capset seccomp memfd_create landlock_create_ruleset
    landlock_add_rule landlock_restrict_self"""
# A program's own filter looks at their arguments.
_DECIDED_INSIDE: Final = "ioctl personality socketpair"
_SOCKET_FAMILIES: Final = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK (bwrap turns the loopback device on)


def container_profile() -> dict[str, Any]:
    calls = " ".join((*ALLOWED.values(), _SANDBOXING, _DECIDED_INSIDE)).split()
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            {"names": sorted(calls), "action": "SCMP_ACT_ALLOW"},
            # Engines before 23.0 don't know the default error; libc takes no other answer for "use clone".
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
            *(
                {
                    "names": ["socket"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": family, "op": "SCMP_CMP_EQ"}],
                }
                for family in _SOCKET_FAMILIES
            ),
        ],
    }


if __name__ == "__main__":
    print(json.dumps(container_profile(), indent=2))
