"""The load of benchmarks/serving.py: a process of its own that asks one server over many connections.

python benchmarks/serving_load.py URL CLIENTS REQUESTS FOLDER [--plain text|list] [--pause SECONDS]

Every client keeps its connection, sends the next picture when the last was answered, and after a 503 waits
as long as Retry-After says, at most `--pause`, before it asks again; latency is that of the answered
exchange. The bodies are made before the clock
starts. Bare asyncio, so that the load costs the machine little of what is being measured.
"""

import argparse
import asyncio
import json
import sys
from base64 import b64encode
from collections import Counter
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from urllib.parse import urlsplit


def request_bytes(picture: bytes, address, plain: str | None) -> bytes:
    "A whole request: MLflow's form, or one picture alone, as the peers take it."
    text = b64encode(picture).decode()
    if plain:
        content = {"image": [text] if plain == "list" else text}
    else:
        content = {"dataframe_split": {"columns": ["image"], "data": [[text]]}}
    body = json.dumps(content).encode()
    head = f"POST {address.path or '/invocations'} HTTP/1.1\r\nHost: {address.netloc}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def exchange(reader, writer, request: bytes) -> tuple[int, dict, bytes]:
    "Status, headers and body of the answer."
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
    if headers.get("transfer-encoding") == "chunked":
        raise SystemExit("chunked answers are not expected")
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def client(address, bodies, seconds: list, statuses: Counter, pause_s: float) -> None:
    "Ask until nothing is left; a 503 is asked again, a broken connection is opened again."
    reader = writer = None
    for request in bodies:
        status = 503
        while status == 503:
            begun = perf_counter()
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(address.hostname, address.port)
                status, headers, _ = await exchange(reader, writer, request)
            except (OSError, asyncio.IncompleteReadError):
                statuses["dropped"] += 1
                writer, status = None, 0
                break
            statuses[str(status)] += 1
            if status == 503:
                await asyncio.sleep(min(pause_s, float(headers.get("retry-after", 1))))
        if status == 200:
            seconds.append(perf_counter() - begun)
    if writer:
        writer.close()


async def load(address, clients: int, requests: int, bodies: list[bytes], pause_s: float) -> dict:
    "All clients at once; what they have seen."
    seconds, statuses = [], Counter()
    queue = iter([bodies[n % len(bodies)] for n in range(requests)])
    begun = perf_counter()
    await asyncio.gather(*(client(address, queue, seconds, statuses, pause_s) for _ in range(clients)))
    wall_s, cuts = perf_counter() - begun, quantiles(seconds, n=100) if len(seconds) > 1 else [0] * 99
    latency = {f"p{n}_ms": round(cuts[n - 1] * 1000, 2) for n in (50, 95, 99)}
    return {"answered": len(seconds), "statuses": statuses, "wall_s": wall_s, **latency}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("clients", type=int)
    parser.add_argument("requests", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plain", choices=["text", "list"])
    parser.add_argument("--pause", type=float, default=60.0)
    options = parser.parse_args()
    address = urlsplit(options.url)
    files = sorted(path for path in options.folder.iterdir() if path.is_file())
    bodies = [request_bytes(path.read_bytes(), address, options.plain) for path in files]
    result = asyncio.run(load(address, options.clients, options.requests, bodies, options.pause))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
