"""The socket that a server listens on."""

import asyncio
import socket

import pytest

from latentlab_shared.errors import UserError
from latentlab_shared.serving import address_of, check_address, listen


def test_an_answer_in_two_writes_is_not_held_back():
    """Header and body are two small packets: without TCP_NODELAY the second waits for the other side's receipt."""

    async def option() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen("127.0.0.1", 0) as listener:
            server = await asyncio.start_server(answer, sock=listener)
            async with server:
                _, writer = await asyncio.open_connection(*listener.getsockname())
                held = await asyncio.wait_for(found, 10)
                writer.close()
        return held

    assert asyncio.run(option()) != 0


def test_addresses_and_a_taken_port():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}/"
        with pytest.raises(UserError, match="cannot listen here") as error:
            check_address("127.0.0.1", port)
    assert "--port" in str(error.value)
    check_address("127.0.0.1", port)  # free again
    for host in ("999.1.1.1", "192.0.2.1", "a..b", "x" * 300, "::zz"):  # no addresses, or another machine's
        with pytest.raises(UserError, match="cannot listen here") as error:
            listen(host, 0)
        assert "--host" in str(error.value) and "--port" not in str(error.value)
    if socket.has_ipv6:
        with listen("::1", 0) as listener:
            assert address_of(listener) == f"http://[::1]:{listener.getsockname()[1]}/"
