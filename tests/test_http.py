"""The client that the reward model and the evaluation share: connections, the key, and what a server asks for.

How a server fails, and what becomes of the answers, is in rewards/model/test_rm_client.py and
evaluation/run/test_eval_endpoint.py.
"""

import asyncio
import contextlib
import time

import pytest
from aiohttp import web

from verl_aiops.http import HttpFault, JsonClient, Patience

PATIENCE = Patience(timeout_s=2.0, deadline_s=5.0, attempts=3, backoff_s=0.01)


@contextlib.asynccontextmanager
async def serving(handle):
    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/ask"
    finally:
        await runner.cleanup()


def plain(answer, shown):
    return answer


def test_connections_stay_open_and_a_closed_client_opens_new_ones_in_another_loop():
    peers, clients = [], []

    async def handle(request):
        peers.append(request.transport.get_extra_info("peername"))
        return web.json_response({"got": await request.json()})

    async def go(client=None):
        async with serving(handle) as url:
            client = client or JsonClient(url, PATIENCE, longest=1000)
            client.url = url
            for number in range(3):
                assert await client.ask([number], plain) == {"got": [number]}
            await client.close()
        return client

    clients.append(asyncio.run(go()))
    assert len(set(peers)) == 1
    asyncio.run(go(clients[0]))
    assert len(peers) == 6 and len(set(peers)) == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_neither_the_key_nor_what_is_sent_goes_where_a_redirect_points(status):
    went = []

    async def other(request):
        went.append(await request.text())
        return web.json_response({})

    async def go():
        async with serving(other) as elsewhere:

            async def handle(request):
                key = request.headers["Authorization"]
                return web.Response(status=status, headers={"Location": f"{elsewhere}?{key}"}, text=f"take {key}")

            async with serving(handle) as url:
                client = JsonClient(url, PATIENCE, longest=1000, key="s3cret", called="a reply")
                with pytest.raises(HttpFault) as fault:
                    await client.ask("conversation", plain)
                await client.close()
        return fault.value

    fault = asyncio.run(go())
    assert went == [] and (fault.status, fault.attempt, fault.again) == (status, 1, False)
    assert "s3cret" not in str(fault) and str(fault).startswith(f"HTTP {status}: a redirect to 'http://127.0.0.1")
    assert str(fault).endswith("which is not followed: 'take Bearer ***'")


@pytest.mark.parametrize("asked, requests", [("0.3", 2), ("3600", 1), ("soon", 2)])
def test_what_a_server_asks_for_is_waited_for_within_the_deadline(asked, requests):
    times = []

    async def handle(request):
        times.append(time.monotonic())
        if len(times) == 1:
            return web.Response(status=503, headers={"Retry-After": asked})
        return web.json_response(7)

    async def go():
        async with serving(handle) as url:
            client = JsonClient(url, PATIENCE, longest=1000)
            try:
                return await client.ask({}, plain)
            finally:
                await client.close()

    if requests == 1:
        with pytest.raises(HttpFault, match="HTTP 503"):
            asyncio.run(go())
    else:
        assert asyncio.run(go()) == 7
        assert times[1] - times[0] >= (0.3 if asked == "0.3" else 0)
    assert len(times) == requests


def test_requests_that_share_a_deadline_end_with_it():
    async def handle(request):
        return web.json_response(1)

    async def go():
        async with serving(handle) as url:
            client = JsonClient(url, PATIENCE, longest=1000)
            try:
                await client.ask({}, plain, time.monotonic() - 1)
            finally:
                await client.close()

    with pytest.raises(HttpFault, match="no time left before the deadline of 5 s") as fault:
        asyncio.run(go())
    assert (fault.value.attempt, fault.value.again) == (0, True)
