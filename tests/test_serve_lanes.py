"""Short requests beside long ones: which lane they take, and whose turn it is. Costs and clock are planted."""

from types import SimpleNamespace

import pytest

from unmask.core.errors import RequestError
from unmask.engine.loop import Step
from unmask.server.lanes import Lanes


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Planted:
    """An engine whose forward pass costs ``fixed + each * positions``."""

    def __init__(self, clock, fixed, each, log, memory):
        self.clock, self.fixed, self.each, self.log, self.memory, self.rows = clock, fixed, each, log, memory, {}
        self.used = self.waiting = 0

    @property
    def running(self):
        return len(self.rows)

    @property
    def busy(self):
        return bool(self.rows)

    def check(self, request):
        if self.memory is not None and request.gen_length > self.memory:
            raise RequestError("too long")

    def add(self, request):
        self.check(request)
        self.rows[request.id] = request.gen_length

    def abort(self, id):
        self.rows.pop(id, None)

    def step(self):
        self.clock.now += self.fixed + self.each * sum(self.rows.values())
        self.log.append(self)
        return [Step(0, tuple(self.rows), *[None] * 13)]


def lanes(fixed, each, memory=None):
    clock, log = Clock(), []
    made = Lanes(lambda size, budget: Planted(clock, fixed, each, log, budget), 32, memory, clock)
    return made, clock, log


def request(id, length):
    return SimpleNamespace(id=id, prompt=[], gen_length=length)


def test_where_time_grows_with_the_rows_a_short_request_is_decoded_apart():
    """It ends after the forward pass it finds and twice its time alone."""
    made, clock, log = lanes(0.0, 0.001)
    for i in range(31):
        made.add(request(i, 512))
    made.step()
    made.add(request("short", 16))
    assert made.express.running == 1 and made.main.running == 31
    began = clock.now
    for _ in range(900):  # alone: 900 x 0.016 s = 14.4 s; a forward pass of the others is 15.9 s
        while made.step() and log[-1] is made.main:
            pass
    assert clock.now - began == pytest.approx(900 * 0.016)
    for _ in range(100):
        made.step()
    assert made.main in log[-100:]


def test_lanes_share_time_equally():
    made, clock, log = lanes(0.0, 0.001)
    for i in range(4):
        made.add(request(i, 512))
    made.step()
    made.add(request("short", 64))
    log.clear()
    while clock.now < 200:
        made.step()
    spent = {
        lane: sum(lane.each * sum(lane.rows.values()) for one in log if one is lane)
        for lane in (made.main, made.express)
    }
    assert spent[made.main] == pytest.approx(spent[made.express], abs=3 * 2.1)


def test_where_time_does_not_grow_they_share_forward_passes():
    """As on a GPU: the first short request goes apart and shows it; those behind it join."""
    made, _, _ = lanes(0.01, 0.0)
    for i in range(8):
        made.add(request(i, 512))
    made.step()
    made.add(request("first", 16))
    assert made.express.running == 1
    made.step()
    made.add(request("second", 16))
    assert made.express.running == 1 and made.main.running == 9


def test_what_is_not_short_joins_the_others():
    made, _, _ = lanes(0.0, 0.001)
    made.add(request(0, 16))
    assert made.main.running == 1
    made.step()
    made.add(request(1, 16))
    made.add(request(2, 512))
    assert made.main.running == 3 and not made.express.busy


def test_what_express_has_no_memory_for_joins_the_others():
    made, _, _ = lanes(0.0, 0.001, memory=800)
    for i in range(3):
        made.add(request(i, 700))
    made.step()
    made.add(request("fits", 100))
    made.add(request("does not", 101))
    assert (made.express.running, made.main.running) == (1, 4)
    with pytest.raises(RequestError):
        made.add(request("never", 701))
    made.abort("fits")
    made.abort("does not")
    assert (made.express.running, made.main.running) == (0, 3)
    assert made.running == 3
