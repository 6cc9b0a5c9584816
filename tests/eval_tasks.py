"""Tasks for lm-evaluation-harness from the problems that ship, in files: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

from unmask.tasks import problems

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
test_split: test
{body}
metadata:
  version: 1.0
"""
GENERATE = """output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<never>"], do_sample: false}
metric_list:
  - metric: exact_match
filter_list:
  - name: answer
    filter:
      - {function: regex, regex_pattern: "(Answer: -?[0-9]+)"}
      - {function: take_first}
"""
CHOOSE = """output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{answer}}"
metric_list:
  - metric: bits_per_byte
"""


def write(folder: Path, n: int = 4) -> Path:
    """``words`` (generate the answer to a word problem), ``rows`` (choose the right last row of a sudoku) and ``roll``
    (likelihood of the word problems' answers) with ``n`` documents each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        {"prompt": p.prompt, "answer": p.answer.splitlines()[-1], "whole": p.answer}
        for p in problems("word_problem", "test", n)
    ]
    rows = []
    for i, p in enumerate(problems("sudoku", "test", n)):
        *_, last = p.answer.splitlines()
        wrong = [last[::-1], last[1:] + last[0]]
        rows.append(
            {
                "prompt": p.prompt,
                "choices": [p.answer[: -len(last)] + own for own in [*wrong[: i % 3], last, *wrong[i % 3 :]]],
                "gold": i % 3,
            }
        )
    for name, data, body in (("words", words, GENERATE), ("rows", rows, CHOOSE), ("roll", words, ROLLING)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in data))
        (folder / f"{name}.yaml").write_text(
            TASK.format(name=name, data=file, cache=folder / "cache", body=body.rstrip())
        )
    return folder
