"""Sends headers that no client sends by mistake, from the open reports about
gRPC 1.51. SECURITY.md has a line for each report. The server continues to
serve other clients."""

import pytest

from support.http2 import (END_HEADERS, END_STREAM, HEADERS, STREAM, Connection,
                           frame, header, message_prefix, request_headers)

INFO = '/attnd.v1.AttentionService/GetServerInfo'
OK = b'grpc-status\x010'


def indexed(name, value):
  """Returns a header that also enters the table of the connection."""
  return b'\x40' + header(name, value)[1:]


def send_headers(connection, block, stream=STREAM):
  connection.send(frame(HEADERS, block, END_HEADERS, stream))
  connection.expect(stream)
  connection.send_data(message_prefix(0), stream)
  connection.end(stream)


def answered(server):
  """Returns whether the server answers on a new connection."""
  with Connection(server.tcp) as connection:
    connection.call(INFO, b'')
    connection.take_until(lambda: connection.reset, 60, 'an answer')
    return OK in connection.headers[STREAM]


# CVE-2023-1428: these headers made gRPC abort if they came with more than 8 KiB
# of other headers.
@pytest.mark.parametrize('odd', [
    {'te': 'x'}, {':scheme': 'x'}, {'grpclb_client_stats': 'x'},
    {'lb-token': 'x'}, {'lb-cost-bin': 'x'}], ids=lambda odd: next(iter(odd)))
@pytest.mark.parametrize('enter', [header, indexed])
@pytest.mark.parametrize('size', [9_000, 17_000, 60_000])
def test_no_header_ends_the_server(server, odd, enter, size):
  block = request_headers(INFO, dict.fromkeys(odd)) + b''.join(
      enter(*field) for field in [*odd.items(), ('x-large', 'a' * size)])
  with Connection(server.tcp) as connection:
    send_headers(connection, block)
    connection.take_until(lambda: connection.reset, 60, 'an answer')
  assert answered(server)


# CVE-2023-32731, CVE-2023-32732 and CVE-2024-7246: after an error in headers,
# client and server can have different tables of headers, so that the server
# would misread a later call. gRPC 1.51 ends the connection instead.
@pytest.mark.parametrize('wrong', [
    indexed('x-wrong-bin', '!!*!'),                           # no base64
    header('x-large', 'a' * 20_000) + indexed('x-after', '1'),
    b'\xff\x80\x80\x80\x80\x01',                            # no such index
], ids=['base64', 'large', 'index'])
def test_no_table_is_used_after_an_error(server, wrong):
  with Connection(server.tcp) as connection:
    send_headers(connection, request_headers(INFO) + wrong)
    connection.take_until(lambda: connection.reset, 60, 'an answer')
    assert OK not in connection.headers[STREAM]
    latest = bytes([0x80 | 62])  # the newest entry
    send_headers(connection, request_headers(INFO) + latest, STREAM + 2)
    connection.take_until(
        lambda: connection.closed or STREAM + 2 in connection.ended, 60,
        'the end of the connection')
    assert OK not in connection.headers[STREAM + 2]
  assert answered(server)
