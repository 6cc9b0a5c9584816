"""Requests that follow the server's own schema, more or less: no answer of 500 or more, none that is late."""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serving import serving
from unmask.server.schema import Chat, Completion, Infill

schemathesis = pytest.importorskip("schemathesis")
REQUESTS = int(os.environ.get("UNMASK_FUZZ", "500"))
SECONDS = 60
FIELDS = sorted({*Chat.model_fields, *Completion.model_fields, *Infill.model_fields} - {"prompt", "messages", "text"})


@pytest.mark.slow
def test_fuzz():
    """``UNMASK_FUZZ`` requests, 500 unless it says otherwise; responses have 4 tokens at most, so that most of the time
    is spent on requests.
    """
    seen = Counter()
    with serving(max_tokens=4, keys=("k",)) as served:
        schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")

        @given(case=schema.as_strategy(), dropped=st.sets(st.sampled_from(FIELDS)))
        @settings(
            max_examples=REQUESTS, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        def one(case, dropped):
            body = case.body if isinstance(case.body, dict) else {}
            for name in dropped:  # values drawn at random are for the most part refused, one by one
                body.pop(name, None)
            own = body.get("unmask")
            hasty = isinstance(own, dict) and own.get("timeout") is not None  # which may be over at once
            reply = case.call(timeout=SECONDS, headers={"authorization": "Bearer k"})
            seen[reply.status_code] += 1
            if not seen.total() % 1000:
                print(dict(seen), flush=True)
            assert reply.status_code < 500 or (hasty and reply.status_code == 504), (case.as_curl_command(), reply.text)
            if reply.status_code >= 400:
                error = reply.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}

        one()
        assert served.idle()
    assert seen[200] and seen[400], seen
