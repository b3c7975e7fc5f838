"""How a client enters a server that uses TLS or asks for tokens."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import ipaddress
import os
import re
from typing import Union

import grpc

Token = Union[str, Callable[[], str], None]
Pem = Union[str, os.PathLike, bytes, None]


@dataclasses.dataclass(frozen=True)
class TLS:
  """How the client knows that it calls the right server, and how it says who it is.

  `ca`, `cert` and `key` each are the path of a PEM file, or its contents as bytes. The
  client reads the files once, when it is made.

  ca: the certificates of the authorities that can have signed the certificate of the
    server. None = those that come with gRPC, or those in the file that the environment
    variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.
  cert, key: the certificate of the client with its chain, and its private key, for
    servers that ask for them (mTLS).
  server_name: the name that the certificate of the server must have, if that is not
    the host in the target. For a unix socket, the host is "localhost".
  """
  ca: Pem = None
  cert: Pem = None
  key: Pem = dataclasses.field(default=None, repr=False)
  server_name: str | None = None

  def __post_init__(self):
    if (self.cert is None) != (self.key is None):
      raise ValueError('tls: expected both cert and key, or neither, got '
                       f'{"only key" if self.cert is None else "only cert"}')

  def credentials(self) -> grpc.ChannelCredentials:
    """Reads the files."""
    return grpc.ssl_channel_credentials(
        _read('ca', self.ca, b'CERTIFICATE'), _read('key', self.key, b'KEY'),
        _read('cert', self.cert, b'CERTIFICATE'))


def _read(name: str, pem: Pem, kind: bytes) -> bytes | None:
  if pem is None:
    return None
  if isinstance(pem, bytes):
    text, source = pem, 'other bytes'
  else:
    with open(pem, 'rb') as file:
      text, source = file.read(), f'the file {os.fspath(pem)!r}'
  # gRPC would only say that it cannot connect. The text can be secret.
  if not re.search(rb'-----BEGIN [A-Z ]*' + kind + b'-----', text):
    raise ValueError(f'tls.{name}: expected PEM with a {kind.decode().lower()}, got '
                     f'{source}')
  return text


class Authorization:
  """The metadata with which a call says who makes it."""

  def __init__(self, target: str, tls: TLS | None, token: Token,
               allow_plaintext_token: bool):
    self._token = token
    if token is None:
      return
    if not (tls or allow_plaintext_token or stays_on_this_host(target)):
      raise ValueError(
          'tls: expected TLS, because others could read the token on the way to '
          'another host (allow_plaintext_token=True sends it anyway), got no TLS '
          f'and the target {target!r}')
    if not callable(token):
      _checked(token)

  def metadata(self) -> tuple[tuple[str, str], ...] | None:
    """Returns the metadata for one attempt of a call."""
    if self._token is None:
      return None
    token = self._token() if callable(self._token) else self._token
    return (('authorization', f'Bearer {_checked(token)}'),)


def _checked(token: str) -> str:
  # gRPC would repeat the token in its error.
  if not isinstance(token, str):
    raise TypeError('token: expected a str, or a function that returns one, got '
                    f'{type(token).__name__}')
  if not re.fullmatch(r'[\x21-\x7e]{1,4096}', token):
    if token and token != token.strip():
      got = 'blanks or a line break around it: call strip()'
    else:
      got = 'other characters' if token else 'nothing'
    raise ValueError(f'token: expected 1 to 4096 visible ASCII characters, got {got}')
  return token


def hint_for(message: str, tls: TLS | None) -> str:
  """Returns what to check if gRPC says with `message` that it cannot connect because
  of TLS or HTTP/1, and otherwise an empty text."""
  if 'CERTIFICATE_VERIFY_FAILED' in message:
    return ('; the certificate of the server is not signed by an authority in '
            f'{"the list of gRPC (tls.ca names another)" if tls.ca is None else "tls.ca"}'
            ', or it is not valid now')
  if ('Hostname Verification Check failed' in message or
      'is not in peer certificate' in message):  # grpcio 1.51
    return ('; the certificate of the server is for another name; if that is the right '
            'server, set tls.server_name to a name in the certificate')
  if 'WRONG_VERSION_NUMBER' in message:
    return '; the server does not seem to use TLS'
  if 'Trying to connect an http1.x server' in message:
    return ('; the port is for HTTP/1, as attnd\'s admin port is (--admin-listen): calls '
            'need the port of --listen, which is 50051 by default')
  if ('Failed to create security handshaker' in message or
      (tls is not None and tls.key is not None and
       message.startswith('empty address list'))):  # grpcio 1.51
    return '; check that tls.key is the key of tls.cert'
  # A server that refuses a handshake closes the connection. gRPC says "last error" only
  # if the connection was never ready.
  if 'last error: ' in message and ('Socket closed' in message or
                                    'Connection reset' in message):
    if tls is None:
      return '; the server may require TLS (tls)'
    if tls.cert is None:
      return '; the server may require a client certificate (tls.cert and tls.key)'
    return '; the server may not accept the client certificate in tls.cert'
  return ''


def stays_on_this_host(target: str) -> bool:
  """Returns whether the target of gRPC can only lead to a unix socket or to loopback
  addresses. Does not look up names."""
  if target.startswith(('unix:', 'unix-abstract:')):
    return True
  addresses = re.sub(r'^(ipv4:|ipv6:|dns:(//[^/]*/)?/?)', '', target)
  return all(map(_is_loopback, addresses.split(',')))


def _is_loopback(address: str) -> bool:
  bracketed = re.fullmatch(r'\[(.*)\](:.*)?', address)
  if bracketed:
    host = bracketed[1]
  else:
    # With several colons, it is an IPv6 address without a port.
    host = address.split(':')[0] if address.count(':') == 1 else address
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host.lower() == 'localhost'
