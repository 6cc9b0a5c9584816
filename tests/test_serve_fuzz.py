"""Requests that follow the server's own schema, more or less: no answer of 500 or more, none that is late."""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serving import serving

schemathesis = pytest.importorskip("schemathesis")
REQUESTS = int(os.environ.get("UNMASK_FUZZ", "500"))
SECONDS = 60


@pytest.mark.slow
def test_fuzz():
    """``UNMASK_FUZZ`` requests, 500 unless it says otherwise; responses have 4 tokens at most, so that most of the time
    is spent on requests.
    """
    seen = Counter()
    with serving(max_tokens=4, keys=("k",)) as served:
        schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")

        @given(case=schema.as_strategy(), own=st.booleans())
        @settings(
            max_examples=REQUESTS, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        def one(case, own):
            if isinstance(case.body, dict) and own:  # texts drawn at random name no model and no policy
                case.body.pop("model", None)
                case.body.pop("unmask", None)
            reply = case.call(timeout=SECONDS, headers={"authorization": "Bearer k"})
            seen[reply.status_code] += 1
            if not seen.total() % 1000:
                print(dict(seen), flush=True)
            assert reply.status_code < 500, (case.as_curl_command(), reply.text)
            if reply.status_code >= 400:
                error = reply.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}

        one()
        assert served.idle()
    assert seen[200] and seen[400], seen
