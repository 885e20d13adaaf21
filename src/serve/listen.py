"""The socket that the service listens on. No package is needed to find out that there can be none."""

import errno
import socket

from src.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address of this machine; nobody can connect yet.

    Raises:
        UserError: there is no such address, or it is taken.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        listener.bind(address)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(
            f"host={host} is no address: type host=127.0.0.1 for this machine alone, host=0.0.0.0 for its networks"
        ) from error
    except PermissionError as error:
        raise UserError(f"port={port} is not for everybody: type a port above 1023, such as port=8000") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port={port} is taken by another program: type another, such as port={port % 65535 + 1}"
            ) from error
        raise UserError(
            f"host={host} is not this machine's ({error.strerror}): type host=127.0.0.1 for this machine alone,"
            " host=0.0.0.0 for its networks"
        ) from error
    return listener
