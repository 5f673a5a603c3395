"""Real Redis servers on free ports of this machine: one, a Cluster of three masters and three replicas, or a Sentinel trio.

They keep nothing after they stop. Without `redis-server` a test is left out; with CI set it fails.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache

import pytest
from ports import free_ports

BUS = 10_000
"""How far above its own a Cluster's node has the port for the other nodes."""

_OFTEN = 0.01


class RedisServer:
    """One redis-server process. Its port stays its own after a restart."""

    def __init__(self, *options, port=None, sentinel=False):
        program = shutil.which("redis-server", path=os.environ.get("PATH", "") + ":/usr/bin")
        if program is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)("redis-server is not installed")
        self.directory = tempfile.TemporaryDirectory(prefix="chat-nest-redis-")
        self.port = port or free_ports(1)[0]
        self.command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory.name]
        if sentinel:
            config = os.path.join(self.directory.name, "sentinel.conf")
            with open(config, "w") as file:
                file.write("\n".join(options) + "\n")
            self.command = [program, config, "--port", str(self.port), "--bind", "127.0.0.1", "--sentinel"]
        else:
            self.command += ["--save", "", "--appendonly", "no", *options]
        self.start()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(self.stop)
        until(lambda: self.answers("PING") == b"PONG")

    def answers(self, *words):
        try:
            return self.ask(*words)
        except OSError:
            return None

    def ask(self, *words):
        """One command on a connection of its own; an error is returned as its text."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            encoded = [str(word).encode() if not isinstance(word, bytes) else word for word in words]
            connection.sendall(
                b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
            )
            with connection.makefile("rb") as file:
                return read(file)

    def signal(self, which):
        self.process.send_signal(which)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.kill()
        self.directory.cleanup()
        atexit.unregister(self.stop)


def read(file):
    line = file.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError
    kind, rest = line[:1], line[1:-2]
    if kind in b"+-":
        return rest
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else file.read(int(rest) + 2)[:-2]
    return None if rest == b"-1" else [read(file) for _ in range(int(rest))]


def until(true, seconds=240):
    """Return what is true at last."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(_OFTEN)
    raise TimeoutError


@cache
def shared_server():
    """A server for tests that use a prefix of their own and harm nobody; REDIS_URL names another."""
    return RedisServer()


def shared_redis_url():
    return os.environ.get("REDIS_URL") or shared_server().url


@cache
def shared_cluster():
    """A Cluster for tests that use a prefix of their own and harm nobody. A master that is only slow is not replaced."""
    return RedisCluster(patience_ms=60_000)


class RedisCluster:
    """Three masters with a replica each; a master that gives no sign for `patience_ms` is replaced."""

    def __init__(self, patience_ms=500):
        self.nodes = [
            RedisServer(
                "--cluster-enabled", "yes", "--cluster-node-timeout", str(patience_ms),
                "--cluster-replica-validity-factor", "0",
                "--cluster-port", str(port + BUS), "--repl-diskless-sync-delay", "0",
                port=port,
            )
            for port in free_ports(6, neighbour=BUS)
        ]  # fmt: skip
        masters, replicas = self.nodes[:3], self.nodes[3:]
        for number, node in enumerate(masters):
            first, last = number * 16_384 // 3, (number + 1) * 16_384 // 3 - 1
            assert node.ask("CLUSTER", "ADDSLOTSRANGE", first, last) == b"OK"
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].port + BUS)
        until(lambda: all(node.ask("CLUSTER", "INFO").count(b"cluster_known_nodes:6") for node in self.nodes))
        for master, replica in zip(masters, replicas, strict=True):
            name = master.ask("CLUSTER", "MYID")
            until(lambda name=name, replica=replica: replica.ask("CLUSTER", "REPLICATE", name) == b"OK")
        until(lambda: all(b"cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.nodes))
        until(lambda: all(b"master_link_status:up" in node.ask("INFO", "replication") for node in replicas))

    @property
    def url(self):
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def stop(self):
        for node in self.nodes:
            node.stop()


class RedisSentinels:
    """A master with a replica, and three sentinels that replace it after half a second."""

    def __init__(self):
        self.master = RedisServer()
        self.replica = RedisServer("--replicaof", f"127.0.0.1 {self.master.port}", "--repl-diskless-sync-delay", "0")
        until(lambda: b"master_link_status:up" in self.replica.ask("INFO", "replication"))
        self.sentinels = [
            RedisServer(
                f"sentinel monitor nest 127.0.0.1 {self.master.port} 2",
                "sentinel down-after-milliseconds nest 500",
                "sentinel failover-timeout nest 2000",
                sentinel=True,
            )
            for _ in range(3)
        ]
        until(
            lambda: all(
                (found := dict(zip(*[iter(one.ask("SENTINEL", "MASTER", "nest"))] * 2, strict=True)))
                and found[b"num-slaves"] == b"1"
                and found[b"num-other-sentinels"] == b"2"
                for one in self.sentinels
            )
        )

    @property
    def url(self):
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels) + "/nest"

    def stop(self):
        for one in (self.master, self.replica, *self.sentinels):
            one.stop()
