"""The law of the server: in float32 every response under load is what it is alone. Fails where one is not.

Usage: law.py PORT [--requests 1000] [--concurrency 32] [--kinds 100] [--seconds 0]
"""

import argparse
import asyncio
import random
import time

import client
import mix

import unmask

MEMORY = "process_resident_memory_bytes"


def check(port, made, expected, numbers, concurrency, drops):
    """Ask; how many ended, how many were left, and what was wrong; and the memory at 200 and at the end."""
    draw = random.Random("leave")
    leaving = {n for n in range(len(numbers)) if draw.random() < drops}
    held = {}

    def done(number):
        if number == 200:
            held["at 200"] = client.metric(port, MEMORY)

    replies = asyncio.run(
        client.crowd(
            port, [made[n] for n in numbers], concurrency, lambda n: draw.random() * 0.3 if n in leaving else None, done
        )
    )
    held["at the end"] = client.metric(port, MEMORY)
    wrong = [
        (n, reply, expected[at])
        for n, (at, reply) in enumerate(zip(numbers, replies, strict=True))
        if not reply.left and (reply.status != 200 or reply.error or reply.text != expected[at] or not reply.finish)
    ]
    return replies, wrong, held


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--kinds", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0, help="go on for so many seconds at least")
    args = parser.parse_args()
    lm = unmask.load(dtype="float32")
    made = mix.jobs(args.kinds, 0)
    expected = mix.alone(lm, made)
    began, round_, at_200, grown = time.monotonic(), 0, 0, []
    while round_ == 0 or time.monotonic() - began < args.seconds:
        draw = random.Random(round_)
        numbers = [draw.randrange(args.kinds) for _ in range(args.requests)]
        replies, wrong, held = check(args.port, made, expected, numbers, args.concurrency, 0.1)
        left = sum(reply.left for reply in replies)
        print(f"{len(replies)} requests: {len(replies) - left - len(wrong)} as alone, {left} left, {len(wrong)} wrong;",
              ", ".join(f"{value / 2**20:.0f} MiB {name}" for name, value in held.items()), flush=True)  # fmt: skip
        for number, reply, right in wrong[:5]:
            print(f"  request {number}: {reply}\n  alone: {right!r}")
        if wrong:
            raise SystemExit(1)
        at_200 = at_200 or held.get("at 200", held["at the end"])
        grown.append(held["at the end"] / at_200 - 1)
        round_ += 1
    if max(grown[0], grown[-1]) > 0.05:
        raise SystemExit(f"memory above the 200th request's: {grown[0]:.1%} after a round, {grown[-1]:.1%} at the end")


if __name__ == "__main__":
    main()
