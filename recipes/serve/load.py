"""What serving costs: the same requests by the engine alone and over HTTP, in turns; times as clients see them.

Usage: load.py PORT [--requests 128] [--concurrency 32] [--rounds 10] [--output FILE.json]
"""

import argparse
import asyncio
import json
import statistics
import sys
import time

import client
import mix

import unmask

PROCESSOR, PASSES = "process_cpu_seconds_total", "unmask_forward_passes_total"
SHORT = ("/v1/completions", {"prompt": "3+4=", "max_tokens": 8, "unmask": {"policy": "vanilla"}})


def offline(lm, made):
    """Tokens, seconds and processor seconds of the engine alone, from prompts to texts, all waiting from the start."""
    began, own, tokens = time.perf_counter(), time.process_time(), 0
    for event in lm.run(mix.requests(lm, made), 32):
        if isinstance(event, unmask.Outcome):
            tokens += lm.result(event).stats.tokens
    return tokens, time.perf_counter() - began, time.process_time() - own


def served(port, made, concurrency):
    """The same over HTTP, and the replies."""
    own, began = client.metric(port, PROCESSOR), time.perf_counter()
    replies = asyncio.run(client.crowd(port, made, concurrency))
    seconds, own = time.perf_counter() - began, client.metric(port, PROCESSOR) - own
    wrong = [reply for reply in replies if reply.status != 200 or reply.error]
    if wrong:
        raise SystemExit(f"{len(wrong)} requests failed, the first: {wrong[0]}")
    return sum(reply.tokens for reply in replies), seconds, own, replies


def share(values, part):
    """The value below which a part of the values lies."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def _passed(port):
    """The number of forward passes when the next one has ended, and the time then."""
    before = passes = await asyncio.to_thread(client.metric, port, PASSES)
    while passes == before:
        await asyncio.sleep(0.01)
        passes = await asyncio.to_thread(client.metric, port, PASSES)
    return passes, time.perf_counter()


async def _beside(port, others, policy):
    """Seconds of a short request alone, of a forward pass of long ones, and of short requests beside these."""
    short = (SHORT[0], {**SHORT[1], "unmask": {"policy": policy}})
    long = ("/v1/completions", {"prompt": "a", "max_tokens": 256, "ignore_eos": True, "unmask": {"policy": "vanilla"}})
    async with client.Connections(port) as connections:
        alone = [(await connections.ask(*short)).seconds for _ in range(6)][1:]
        tasks = [asyncio.ensure_future(client.ask(port, *long)) for _ in range(others)]
        await asyncio.sleep(2)  # they are all in
        before, began = await _passed(port)
        await asyncio.sleep(4)
        passes, now = await _passed(port)
        one = (now - began) / (passes - before)
        beside = [(await connections.ask(*short)).seconds for _ in range(7)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    limit = 3 * statistics.median(alone) + one
    return {
        "alone": round(statistics.median(alone), 3),
        "forward_pass_of_long": round(one, 3),
        "limit": round(limit, 3),
        f"beside_{others}_long": [round(seconds, 3) for seconds in sorted(beside)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--others", type=int, default=31)
    parser.add_argument("--output")
    args = parser.parse_args()
    lm = unmask.load(dtype="float32")
    made = mix.jobs(args.requests, 7)
    served(args.port, made[:16], 8)
    offline(lm, made[:16])
    rates, work = {"offline": [], "served": []}, {"offline": [], "served": []}
    replies = []
    for _ in range(args.rounds):
        tokens, seconds, own = offline(lm, made)
        rates["offline"].append(tokens / seconds)
        work["offline"].append(own)
        tokens, seconds, own, found = served(args.port, made, args.concurrency)
        rates["served"].append(tokens / seconds)
        work["served"].append(own)
        replies += found
        print(*(f"{name}: {several[-1]:.1f} tokens/s" for name, several in rates.items()), file=sys.stderr, flush=True)
    streams = [
        reply.first
        for reply, (_, body) in zip(replies, made * args.rounds, strict=True)
        if body.get("stream") and reply.first
    ]
    found = {
        "requests": args.requests, "concurrency": args.concurrency, "rounds": args.rounds,
        **{f"{name}_tokens_per_second": [round(rate, 1) for rate in several] for name, several in rates.items()},
        "served_to_offline": round(statistics.median(rates["served"]) / statistics.median(rates["offline"]), 3),
        "processor_seconds": {name: [round(own, 2) for own in several] for name, several in work.items()},
        "first_token_seconds": {f"p{int(100 * p)}": round(share(streams, p), 3) for p in (0.5, 0.99)},
        "response_seconds": {f"p{int(100 * p)}": round(share([r.seconds for r in replies], p), 3) for p in (0.5, 0.99)},
    }  # fmt: skip
    for policy in ("vanilla", "threshold"):
        found[f"short_{policy}"] = asyncio.run(_beside(args.port, args.others, policy))
    print(json.dumps(found, indent=1))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
