#!/usr/bin/env bash
# LiteLLM against the server: chat, a stream, a completion, an error. Usage: litellm.sh FOLDER (for the environment)
set -euo pipefail
folder=${1:?"usage: litellm.sh FOLDER"}
here=$(dirname "$0")
[ -x "$folder/bin/python" ] || python -m venv "$folder"
"$folder/bin/python" -m pip install --quiet "litellm>=1.70"
source "$here/server.sh"
serve
LITELLM_LOCAL_MODEL_COST_MAP=True "$folder/bin/python" - "$port" <<'END'
import sys

import litellm

common = {"model": "openai/unmask-tiny", "api_base": f"http://127.0.0.1:{sys.argv[1]}/v1", "api_key": "none"}
said = [{"role": "user", "content": "Mia has 7 pens. Mia buys 3 pens. How many pens does Mia have now?"}]
answer = "7+3=10\n10+3=13\nAnswer: 13"
whole = litellm.completion(messages=said, **common)
assert whole.choices[0].message.content == answer, whole
assert whole.usage.completion_tokens == 20
parts = litellm.completion(messages=said, stream=True, extra_body={"unmask": {"policy": "vanilla"}}, **common)
assert "".join(part.choices[0].delta.content or "" for part in parts) == answer
text = litellm.text_completion(prompt="11*2=", suffix="\n22+7=29", max_tokens=2, **{**common, "model": "text-completion-openai/unmask-tiny"})
assert text.choices[0].text == "22", text
try:
    litellm.completion(messages=said, logit_bias={"3": 1}, **common)
    raise SystemExit("logit_bias was accepted")
except litellm.BadRequestError as error:
    assert "logit_bias" in str(error)
print("litellm", "fine")
END
