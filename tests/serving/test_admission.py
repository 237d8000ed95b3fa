"""Limits that are checked at the start, and budgets that never lose or invent anything."""

import asyncio
import dataclasses

import pytest

from efficientdet import cli
from efficientdet.errors import UserError
from efficientdet.serving import service as services
from efficientdet.serving.admission import Budget, Limits, check


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_waiting": 0}, "`limits.max-waiting` is 0; it must be between 1 and 1e9"),
        ({"upload_seconds": -1.0}, "`limits.upload-seconds` is -1"),
        ({"header_seconds": float("nan")}, "`limits.header-seconds` is nan"),
        ({"max_megapixels": 100.0}, r"`limits.image-memory-mb` is 1500, but .* \(100\) needs 2400"),
        ({"max_upload_mb": 300.0}, "`limits.upload-memory-mb` is 256"),
    ],
)
def test_limits_that_cannot_work_are_named(wrong, message):
    check(Limits())
    with pytest.raises(UserError, match=message):
        check(dataclasses.replace(Limits(), **wrong))


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(capsys):
    with services._bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", "no-such-weights", "--port", str(port)]) == 1
    assert f"`port` is {port}, but the server cannot listen on 127.0.0.1:{port}: " in capsys.readouterr().err
    assert cli.main(["serve", "no-such-weights", "--port", "70000"]) == 1
    assert "`port` is 70000" in capsys.readouterr().err


def test_an_address_that_is_none_is_told(capsys):
    assert cli.main(["serve", "no-such-weights", "--host", "256.1.1.1"]) == 1
    assert "`host` is 256.1.1.1" in capsys.readouterr().err


def test_a_budget_serves_in_turn_and_survives_those_who_leave():
    async def scenario():
        budget = Budget(10)
        await budget.take(8)
        assert not budget.try_take(3)
        order = []

        async def want(amount, name):
            await budget.take(amount)
            order.append(name)

        large, small = asyncio.ensure_future(want(10, "large")), asyncio.ensure_future(want(2, "small"))
        await asyncio.sleep(0)
        assert not budget.try_take(1), "who comes later does not overtake"
        await asyncio.sleep(0)
        assert order == []
        large.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await small
        assert order == ["small"]
        budget.give(2)
        late = asyncio.ensure_future(want(10, "late"))
        await asyncio.sleep(0)
        budget.give(8)
        late.cancel()  # it was its turn already
        await asyncio.gather(late, return_exceptions=True)
        assert budget.taken == 0

    asyncio.run(scenario())
