"""Makes certificates with the command openssl, and connects with them."""

import dataclasses
import hashlib
import pathlib
import socket
import ssl
import subprocess

import grpc


@dataclasses.dataclass
class Pair:
  """The files of a certificate and of its private key, in PEM."""

  cert: pathlib.Path
  key: pathlib.Path


def _openssl(*arguments):
  subprocess.run(['openssl', *map(str, arguments)], check=True,
                 capture_output=True)


def server_flags(folder):
  """Returns flags for TLS and tokens, with files that are made in `folder`, and
  the metadata with which clients may call."""
  pair = Authority(folder, 'authority').issue('server')
  tokens = folder / 'tokens'
  tokens.write_text(f'tests {hashlib.sha256(b"secret").hexdigest()} user\n')
  return ([f'--tls-cert={pair.cert}', f'--tls-key={pair.key}',
           f'--token-file={tokens}'], (('authorization', 'Bearer secret'),))


class Authority:
  """A certificate authority that keeps its files in `folder`."""

  def __init__(self, folder, name):
    self._folder = folder
    self.cert = folder / f'{name}.pem'
    self._key = folder / f'{name}.key'
    _openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt',
             'ec_paramgen_curve:P-256', '-nodes', '-days', 30, '-subj',
             f'/CN={name}', '-addext', 'keyUsage=critical,keyCertSign',
             '-keyout', self._key, '-out', self.cert)

  def issue(self, name, alternative_names='DNS:localhost,IP:127.0.0.1'):
    """Returns a new pair whose common name is `name`."""
    pair = Pair(self._folder / f'{name}.pem', self._folder / f'{name}.key')
    request = self._folder / f'{name}.request'
    extensions = self._folder / f'{name}.extensions'
    # Python's ssl asks for all of these since 3.13.
    extensions.write_text(f'subjectAltName={alternative_names}\n'
                          'authorityKeyIdentifier=keyid\n'
                          'subjectKeyIdentifier=hash\n')
    _openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
             '-nodes', '-subj', f'/CN={name}', '-keyout', pair.key, '-out',
             request)
    _openssl('x509', '-req', '-in', request, '-CA', self.cert, '-CAkey',
             self._key, '-CAcreateserial', '-days', 10, '-extfile', extensions,
             '-out', pair.cert)
    return pair


def tls_channel(address, authority, pair=None, options=()):
  """Returns a separate connection that trusts `authority` and, if there is a
  pair, shows its certificate."""
  credentials = grpc.ssl_channel_credentials(
      authority.cert.read_bytes(), *((pair.key.read_bytes(),
                                      pair.cert.read_bytes()) if pair else ()))
  return grpc.secure_channel(
      address, credentials,
      options=[('grpc.max_send_message_length', -1),
               ('grpc.max_receive_message_length', -1),
               ('grpc.enable_http_proxy', 0),
               ('grpc.use_local_subchannel_pool', 1), *options])


def client_context(authority, pair=None):
  """Returns the context for handshakes of a client that speaks HTTP/2."""
  context = ssl.create_default_context(cafile=authority.cert)
  context.set_alpn_protocols(['h2'])
  if pair:
    context.load_cert_chain(pair.cert, pair.key)
  return context


def handshake(address, context):
  """Returns a connected TLS socket."""
  host, port = address.rsplit(':', 1)
  plain = socket.create_connection((host, int(port)), timeout=60)
  try:
    return context.wrap_socket(plain, server_hostname=host)
  except BaseException:
    plain.close()
    raise


def served_name(address, authority):
  """Returns the common name of the certificate that the server shows."""
  with handshake(address, client_context(authority)) as connection:
    subject = dict(item[0] for item in connection.getpeercert()['subject'])
  return subject['commonName']
