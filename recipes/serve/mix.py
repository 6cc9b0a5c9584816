"""Requests of many kinds: policies, caches, lengths, temperatures, streams; and what each is answered alone."""

import random
from dataclasses import replace

from unmask import Outcome, tasks

SETTINGS = [
    {},
    {"policy": "threshold(tau=0.9)"},
    {"policy": "threshold(tau=0.99,block_length=16)", "cache": "dual"},
    {"policy": "slowfast(tau_high=0.998,window=1,block_length=32)"},
    {"policy": "slowfast(tau_high=0.9)", "cache": "dllm(kp=2,kr=1)"},
    {"policy": "wino(block_length=16)"},
    {"policy": "vanilla(steps=16)", "cache": "prefix"},
    {"policy": "entropy_bound"},
]


def jobs(count, seed, lengths=(16, 24, 32, 48, 64), settings=SETTINGS, streams=(None, "text", "steps")):
    """``count`` requests ``(path, body)``, the same ones for the same arguments."""
    draw = random.Random(f"mix {seed}")
    families = [tasks.problems(name, "test", 40) for name in ("word_problem", "waiting_line", "sudoku", "record")]
    made = []
    for _ in range(count):
        problem = draw.choice(draw.choice(families))
        stream = draw.choice(streams)
        body = {
            "messages": [{"role": "user", "content": problem.prompt}],
            "max_tokens": draw.choice(lengths),
            "temperature": draw.choice((0, 0, 0.7, 1.2)),
            "seed": draw.randrange(1 << 30),
            "unmask": dict(draw.choice(settings)),
        }
        if draw.random() < 0.2:
            body["stop"] = ["Answer", "\n\n"]
        if stream:
            body["stream"] = True
            body["unmask"]["stream"] = stream
        made.append(("/v1/chat/completions", body))
    return made


def requests(lm, made):
    """The same as requests of the library, with the ids 0, 1, ..."""
    found = []
    for number, (_, body) in enumerate(made):
        (one,) = lm.requests(
            [body["messages"]], body["max_tokens"], body["unmask"].get("policy"), body["unmask"].get("cache"),
            temperature=body["temperature"], seed=body["seed"], stop=body.get("stop"),
        )  # fmt: skip
        found.append(replace(one, id=number))
    return found


def alone(lm, made):
    """The text of each, decoded by itself."""
    texts = []
    for request in requests(lm, made):
        (outcome,) = [event for event in lm.run([request], 1) if isinstance(event, Outcome)]
        texts.append(lm.result(outcome).text)
    return texts
