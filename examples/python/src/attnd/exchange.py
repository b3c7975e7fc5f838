"""The steps of a call, for both clients. Each function is a generator. It yields a
step, which is a Pause or an Rpc, and receives the result of that step. If an Rpc
fails, the client throws an AttndError into the generator. Client waits while it
performs a step, and AsyncClient awaits it.

No function keeps an error in a variable when it raises it. Otherwise, the traceback
of the error would refer to the error itself, and the arrays of a failed call would
stay in memory until Python's next search for such cycles.
"""

import dataclasses
import typing

from attnd import errors, transport
from attnd.v1 import attention_pb2 as pb


@dataclasses.dataclass(frozen=True)
class Pause:
  """A step that waits before the next attempt. Its result is True if the client was
  closed during that time."""
  seconds: float


@dataclasses.dataclass(frozen=True)
class Rpc:
  """A step that calls a method of the service. If the answer is a stream, `receive`
  is called with each of its messages. Otherwise, the result of the step is the only
  message of the answer."""
  method: str
  request: typing.Any  # a message, or an iterator of messages
  timeout: float | None
  receive: typing.Callable | None = None


def with_retries(attempts, once):
  """Calls once() until it does not fail, and returns what it returns."""
  while True:
    try:
      return (yield from once())
    except errors.AttndError as error:
      delay = attempts.delay_after(error)
      if delay is None:
        raise attempts.final(error) from error.__cause__
      if (yield Pause(delay)):
        raise


class Server:
  """Knows how large a message the server accepts. Asks the server before the first
  call that can be too large, and again if an error suggests that the limit has
  changed."""

  def __init__(self):
    self._limits = None

  def attend(self, method, request, attempts, stream=False):
    """Makes one attempt of a call with tensors. Returns (reply, output, lse). The
    last two are the elements of the reply's tensors if they arrived in a stream, and
    None if the reply contains them.

    stream: whether to use a stream even if the request fits into one message.
    """
    limits = transport.Limits()
    known = self._limits
    if stream or not request.is_small():
      limits = known or (yield from self._ask(attempts))
    try:
      return (yield from _send(method, request, limits, attempts, stream))
    except errors.AttndError as error:
      if known is not limits or not transport.may_have_other_limits(error):
        raise
      limits = yield from self._ask(attempts)
      if limits == known:
        raise
    return (yield from _send(method, request, limits, attempts, stream))

  def _ask(self, attempts):
    try:
      info = yield Rpc('GetServerInfo', pb.GetServerInfoRequest(),
                       attempts.remaining())
      self._limits = transport.Limits.of(info)
    except errors.Unimplemented:
      self._limits = transport.Limits()
    return self._limits


def _send(method, request, limits, attempts, stream):
  if not (stream or request.must_stream(limits)):
    reply = yield Rpc(method, request.message(), attempts.remaining())
    return reply, None, None
  response = transport.Response()
  yield Rpc('AttentionStream', request.stream(limits), attempts.remaining(),
            response.add)
  return response.joined()


def benchmark(request, attempts, on_progress):
  """Returns the BenchmarkResult. Retries only while no event has arrived."""
  events = []

  def receive(event):
    events.append(event)
    if event.HasField('progress') and on_progress:
      on_progress(event.progress)

  def once():
    try:
      yield Rpc('Benchmark', request, attempts.remaining(), receive)
    except errors.AttndError:
      if events:
        attempts.end()
      raise

  yield from with_retries(attempts, once)
  return events[-1].result
