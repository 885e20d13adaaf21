"""The socket that the service listens on. It needs no package, so a mistake in the address is told before others."""

import errno
import socket

from src.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address of this machine; nobody can connect yet.

    Raises:
        UserError: there is no such address, or it is taken.
    """
    remedy = "type host=127.0.0.1 for this machine alone, host=0.0.0.0 for its networks"
    try:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"host={host} is not an address: {remedy}") from error
    except PermissionError as error:
        raise UserError(f"port={port} is reserved: type a port above 1023, such as port=8000") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = port % 65535 + 1
            raise UserError(f"port={port} is taken by another program: type another, such as port={other}") from error
        raise UserError(f"host={host} is not this machine's ({error.strerror}): {remedy}") from error
    return listener
