"""Requests that `segwatch serve` answers on this machine, client included.

    python benchmarks/serving.py [--rate 200] [--seconds 5] [--connections 8]

A model of 27 generated segments is served by a process of its own; this process asks it on loopback over connections
that stay open. First requests of 10 instances arrive at a fixed rate, however slow the answers are: the latency
counts from when a request was due, so a server that falls behind shows it. Then each connection asks again as soon as
it is answered, which gives the largest rate.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import quality

from segwatch.core.baseline import Recursion
from segwatch.core.bundle import ModelBundle, Rules, write_bundle
from segwatch.core.features import FEATURES, FeatureSet
from segwatch.core.rollup import with_rollups
from segwatch.core.training import Prepared, fit_prepared

SEGMENTS, INSTANCES, BODIES = 27, 10, 64
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=200, help="requests per second of the first part")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each part")
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores ({processor()}), Python {platform.python_version()}, {INSTANCES} instances a request"
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = model(Path(folder) / "bundle")
        with served(bundle) as port:
            asyncio.run(measure(port, requests(bundle), options))


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def model(path: Path) -> ModelBundle:
    panel, _ = quality.data(SEGMENTS, seed=7)
    prepared = Prepared.of(with_rollups(panel, 1), Recursion(FeatureSet("day", "count"), 7))
    return write_bundle(path, "new_users", prepared, Rules(0.01, 0.1, 90), fit_prepared(prepared, 90), 1)


@contextmanager
def served(bundle: ModelBundle) -> Iterator[int]:
    """The port of a server that is ready, in a process of its own."""
    command = [sys.executable, "-c", "from segwatch.cli import main; main()", "serve", "--port", "0"]
    log = bundle.path.with_name("log")
    with log.open("w") as stderr:
        process = subprocess.Popen([*command, "--model", str(bundle.path)], stderr=stderr)
    try:
        deadline = time.monotonic() + 60
        while "ready after" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start: {log.read_text()}")
            time.sleep(0.05)
        yield int(log.read_text().partition("http://127.0.0.1:")[2].split()[0])
    finally:
        process.terminate()
        process.wait(30)


def requests(bundle: ModelBundle) -> list[bytes]:
    """Requests as they go over the wire, about some segments each."""
    rng = np.random.default_rng(7)
    ids = bundle.history.segments.ids
    texts = []
    for _ in range(BODIES):
        chosen, X = rng.integers(0, len(ids), INSTANCES), rng.normal(scale=0.3, size=(INSTANCES, len(FEATURES)))
        rows = [{"segment_id": ids[i], **dict(zip(FEATURES, x, strict=True))} for i, x in zip(chosen, X, strict=True)]
        body = json.dumps({"instances": rows}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: segwatch\r\nContent-Length: {len(body)}\r\n\r\n"
        texts.append(head.encode() + body)
    return texts


async def measure(port: int, texts: list[bytes], options: argparse.Namespace) -> None:
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(options.connections)]
    await closed_loop(connections, texts, 0.5)
    print("| load | requests/s | p50 ms | p95 ms | p99 ms | largest ms |\n|---|---|---|---|---|---|")
    report(f"{options.rate} requests/s", *await fixed_rate(connections, texts, options.rate, options.seconds))
    report(f"{options.connections} at a time", *await closed_loop(connections, texts, options.seconds))
    for _, writer in connections:
        writer.close()


def report(load: str, latencies: list[float], seconds: float) -> None:
    quantiles = 1000 * np.quantile(latencies, [0.5, 0.95, 0.99, 1.0])
    print(f"| {load} | {len(latencies) / seconds:.0f} | " + " | ".join(f"{q:.1f}" for q in quantiles) + " |")


async def fixed_rate(
    connections: list[Connection], texts: list[bytes], rate: int, seconds: float
) -> tuple[list[float], float]:
    """Latencies since each request was due, and how long it took to answer them all."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for connection in connections:
        free.put_nowait(connection)
    latencies: list[float] = []
    start = time.perf_counter()

    async def arrive(number: int) -> None:
        due = start + number / rate
        await asyncio.sleep(due - time.perf_counter())
        connection = await free.get()
        await ask(connection, texts[number % BODIES])
        latencies.append(time.perf_counter() - due)
        free.put_nowait(connection)

    await asyncio.gather(*(arrive(number) for number in range(int(rate * seconds))))
    return latencies, time.perf_counter() - start


async def closed_loop(connections: list[Connection], texts: list[bytes], seconds: float) -> tuple[list[float], float]:
    """Latencies where every connection asks again as soon as it is answered."""
    latencies: list[float] = []
    start = time.perf_counter()

    async def client(number: int, connection: Connection) -> None:
        while (sent := time.perf_counter()) < start + seconds:
            await ask(connection, texts[number % BODIES])
            latencies.append(time.perf_counter() - sent)
            number += 1

    await asyncio.gather(*(client(7 * i, connection) for i, connection in enumerate(connections)))
    return latencies, time.perf_counter() - start


async def ask(connection: Connection, text: bytes) -> None:
    """The request was answered with as many predictions as it had instances."""
    reader, writer = connection
    writer.write(text)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    body = await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
    if b" 200 " not in head[:15] or body.count(b'"prediction"') != INSTANCES:
        sys.exit(f"the server answered {head!r} {body[:200]!r}")


if __name__ == "__main__":
    main()
