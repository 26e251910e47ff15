"""Reaching anything over a socket."""

from __future__ import annotations

from typing import Final

from tests.security.attack import Attack, Wall

ATTACKS: Final = (
    Attack(
        name="internet-v4",
        tries="connect to addresses on the internet and in private networks",
        walls=(Wall.NETWORK,),
        program="""
            import socket
            for address in ("1.1.1.1", "8.8.8.8", "10.0.0.1", "172.17.0.1", "192.168.0.1"):
                attempt(address, lambda: socket.create_connection((address, 53), timeout=1))
        """,
    ),
    Attack(
        name="internet-v6",
        tries="connect over IPv6",
        walls=(Wall.NETWORK,),
        program="""
            import socket
            for address in ("2606:4700:4700::1111", "fe80::1%lo", "ff02::1"):
                attempt(address, lambda: socket.create_connection((address, 53), timeout=1))
        """,
    ),
    Attack(
        name="metadata-address",
        tries="ask the cloud's metadata service for credentials",
        walls=(Wall.NETWORK,),
        program="""
            import urllib.request
            for url in ("http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/latest/meta-data/"):
                attempt(url, lambda: urllib.request.urlopen(url, timeout=1))
        """,
    ),
    Attack(
        name="names",
        tries="resolve a name, and tell something to whoever answers for it",
        walls=(Wall.NETWORK, Wall.FILES),
        program="""
            import socket
            attempt("getaddrinfo", lambda: socket.getaddrinfo("secret.example.com", 443))
            query = bytes.fromhex("000101000001000000000000066578616d706c6503636f6d0000010001")
            for server in ("8.8.8.8", "127.0.0.53"):
                def ask():
                    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    datagram.settimeout(0.5)
                    datagram.connect((server, 53))
                    datagram.send(query)
                    return datagram.recv(512)
                attempt(server, ask)
        """,
    ),
    Attack(
        name="host-loopback",
        tries="connect to a service that listens on the host's loopback, IPv4 and IPv6",
        walls=(Wall.NETWORK,),
        program="""
            import socket
            for address, port in (("127.0.0.1", host.tcp_port), ("::1", host.tcp6_port)):
                attempt(address, lambda: socket.create_connection((address, port), timeout=1))
        """,
    ),
    Attack(
        name="host-datagrams",
        tries="send a datagram to a service on the host",
        walls=(Wall.NETWORK,),
        program="""
            import socket
            def send():
                datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                datagram.settimeout(0.5)
                datagram.connect(("127.0.0.1", host.udp_port))
                datagram.send(b"stolen")
                return datagram.recv(1)
            attempt("datagram", send)
        """,
    ),
    Attack(
        name="unix-socket",
        tries="connect to a Unix socket of the host by its path",
        walls=(Wall.FILES,),
        program="""
            import socket
            attempt(host.unix_path, lambda: socket.socket(socket.AF_UNIX).connect(host.unix_path))
        """,
    ),
    Attack(
        name="abstract-socket",
        tries="connect to a Unix socket without a path, which no file system hides",
        walls=(Wall.NETWORK,),
        program="""
            import socket
            attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0" + host.abstract_name))
        """,
    ),
    Attack(
        name="runner-socket",
        tries="hand programs to the runner itself",
        walls=(Wall.FILES,),
        program="""
            import socket
            attempt(host.runner_socket, lambda: socket.socket(socket.AF_UNIX).connect(host.runner_socket))
        """,
    ),
    Attack(
        name="system-sockets",
        tries="talk to the container engine, the message bus and the init system",
        walls=(Wall.FILES,),
        program="""
            import socket
            for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock",
                         "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/systemd/notify"):
                attempt(path, lambda: socket.socket(socket.AF_UNIX).connect(path))
        """,
    ),
    Attack(
        name="raw-sockets",
        tries="open raw and packet sockets",
        walls=(Wall.RIGHTS, Wall.CALLS),
        program="""
            import socket
            for family, kind, protocol in ((2, 3, 1), (2, 3, 255), (10, 3, 58), (17, 3, 0x300), (17, 2, 0x300)):
                attempt(f"{family} {kind} {protocol}", lambda: socket.socket(family, kind, protocol))
        """,
    ),
    Attack(
        name="other-socket-families",
        tries="sockets that a network namespace does not hold: virtual machines, kernel, crypto, Bluetooth, TIPC",
        walls=(Wall.CALLS,),
        program="""
            import socket
            for family, kind in ((40, 1), (16, 3), (38, 5), (31, 3), (30, 5), (29, 3), (44, 3), (15, 3)):
                attempt(f"family {family}", lambda: socket.socket(family, kind))
        """,
    ),
    Attack(
        name="interfaces",
        tries="find another network interface than loopback, and change one",
        walls=(Wall.NETWORK, Wall.RIGHTS),
        program="""
            import fcntl, socket, struct
            names = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
            check("other interfaces", names != ["lo"])
            down = struct.pack("16sH14x", b"lo", 0)
            address = struct.pack("16sHH4s8x", b"lo", 2, 0, bytes((10, 0, 0, 9)))
            attempt("flags", lambda: fcntl.ioctl(socket.socket(), 0x8914, down))
            attempt("address", lambda: fcntl.ioctl(socket.socket(), 0x8916, address))
        """,
    ),
    Attack(
        name="shell-network",
        tries="connect by the shell's own means",
        walls=(Wall.NETWORK,),
        language="shell",
        program="""
            for address in 1.1.1.1/53 169.254.169.254/80 "127.0.0.1/$tcp_port"; do
                echo "TRIES $address"
                if (exec 3<>"/dev/tcp/$address") 2>&1; then echo "ESCAPED $address"; else echo "REFUSED $address"; fi
            done
        """,
    ),
)
