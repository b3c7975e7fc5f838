"""What a call does, step by step, for both clients. Each function is a generator:
it yields a step, a Pause or an Rpc, and gets what came of it; a failure of an Rpc
is thrown into it as an AttndError. The client that runs it waits, or awaits.

No function keeps an error in a variable when it raises it: the error's traceback
would refer to the error itself, and the arrays of a failed call would stay in
memory until Python next looks for such cycles.
"""

import dataclasses
import typing

from attnd import errors, transport
from attnd.v1 import attention_pb2 as pb


@dataclasses.dataclass(frozen=True)
class Pause:
  """To wait before the next attempt. The result is whether the client was closed
  meanwhile."""
  seconds: float


@dataclasses.dataclass(frozen=True)
class Rpc:
  """To call a method of the service. `receive` gets each message of an answer
  that is a stream; without it the answer is one message, and the result."""
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
  """Knows how large a message the server takes. It asks before the first call
  that may be too large, and again when a refusal suggests that this changed."""

  def __init__(self):
    self._limits = None

  def attend(self, method, request, attempts, stream=False):
    """Makes one attempt of a call with tensors. Returns (reply, output, lse): the
    last two are the elements of the reply's tensors if they came in a stream,
    and None if the reply has them.

    stream: whether to stream even if one message would do.
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
  """The BenchmarkResult. Tried again only while no event has arrived."""
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
