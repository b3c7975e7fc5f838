"""The two clients. Client blocks its thread while it waits; AsyncClient does not."""

import asyncio
import json
import pkgutil
import reprlib
import threading

import grpc

from attnd import access, calls, errors, exchange
from attnd.retry import RetryPolicy
from attnd.v1 import attention_pb2_grpc as pb_grpc

_CHANNEL_OPTIONS = {
    # The client sets no limits, because the server has limits and names them in
    # its errors.
    'grpc.max_send_message_length': -1,
    'grpc.max_receive_message_length': -1,
    # The tensors must not go through a web proxy that the environment names
    # (http_proxy).
    'grpc.enable_http_proxy': 0,
    # Between two attempts to connect, gRPC fails every call. By default, this time
    # grows to two minutes. With shorter times, the client soon finds a server that
    # has been started again.
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 2000,
    # Despite its name, this is the time limit of one attempt to connect. It is long
    # enough for TCP to send its first packet again twice.
    'grpc.min_reconnect_backoff_ms': 5000,
    # Resolves a name again after this time, and not only after 30 s.
    'grpc.dns_min_time_between_resolutions_ms': 2000,
    # A call is silent while the server computes. After a minute of silence, gRPC
    # sends a ping, which the server has to answer within 20 s. In this way, the
    # client notices that the server or its host hangs. Older and newer versions of
    # gRPC have different names for these 20 s.
    'grpc.keepalive_time_ms': 60_000,
    'grpc.keepalive_timeout_ms': 20_000,
    'grpc.http2.ping_timeout_ms': 20_000,
    'grpc.http2.max_pings_without_data': 0,
}


def default_service_config():
  """Returns attnd/v1/attention_grpc_service_config.json. It selects round_robin over
  all addresses of a name, and has a retry policy for programs that use gRPC without
  this package."""
  return json.loads(pkgutil.get_data(
      'attnd', 'v1/attention_grpc_service_config.json'))


def _json_of(service_config):
  try:
    text = (service_config if isinstance(service_config, str) else
            json.dumps(service_config))
    if isinstance(json.loads(text), dict):
      return text
  except (TypeError, ValueError):
    pass
  raise ValueError('service_config: expected a dict, or JSON of an object, got '
                   f'{reprlib.repr(service_config)}')


def _channel_options(service_config, channel_options, tls, only_healthy):
  options = dict(_CHANNEL_OPTIONS)
  if not only_healthy:
    options['grpc.inhibit_health_checking'] = 1
  if tls and tls.server_name:
    options['grpc.ssl_target_name_override'] = tls.server_name
  if service_config is None:
    service_config = default_service_config()
    # gRPC makes at most five attempts, and reports the deadline instead of the
    # error. RetryPolicy has neither drawback, so gRPC's own retries are off.
    options['grpc.enable_retries'] = 0
  options['grpc.service_config'] = _json_of(service_config)
  options.update(channel_options)
  return list(options.items())


def _open(module, target, options, tls):
  """Returns a channel of `module`, which is grpc or grpc.aio."""
  if tls:
    return module.secure_channel(target, tls.credentials(), options)
  return module.insecure_channel(target, options)


def _is_cancelled(task):
  """Returns whether somebody cancelled the task. Always False in Python 3.10, which
  does not record this."""
  return hasattr(task, 'cancelling') and task.cancelling() > 0


def _error_of(call):
  """Returns the AioRpcError of a call of grpc.aio that has ended."""

  def result(coroutine):  # does not wait, so it ends in its first step
    try:
      coroutine.send(None)
    except StopIteration as end:
      return end.value
    raise RuntimeError('expected a call that has ended')

  return grpc.aio.AioRpcError(
      result(call.code()), grpc.aio.Metadata(), result(call.trailing_metadata()),
      result(call.details()))


def _failure(rpc_error, tls):
  """Returns the AttndError for a grpc.RpcError, which becomes its cause."""
  error = errors.from_rpc_error(
      rpc_error, access.hint_for(rpc_error.details() or '', tls))
  # gRPC raises the call object. Its traceback would refer to the call object again,
  # which would be a reference cycle.
  error.__cause__ = rpc_error.with_traceback(None)
  return error


class Client(calls.Calls):
  """Calls the servers of one target. Thread-safe.

  target: "host:port", "unix:PATH" or any other name that gRPC resolves. For
    example, "dns:///attnd:50051" calls all servers of that name in turn.
  timeout: in seconds, for calls without a timeout of their own. None = no deadline.
  tls: True or a TLS. False = plain text.
  token: a bearer token, which the client sends with each attempt of a call. If it is a
    function, the client calls it for each attempt, so it must be fast.
  allow_plaintext_token: whether to send the token without TLS to another host, where
    everybody on the way can read it.
  only_healthy: whether the client calls only servers that say that they are SERVING.
    Turn it off if a proxy chooses a server for each call, because the answer of one
    server would then count for all of them.
  service_config: a dict or JSON that replaces default_service_config(). gRPC then
    applies its retryPolicy within each attempt of `retry`.
  channel_options: options of gRPC, as pairs. They override those of the client.

  Calls raise AttndError, and TypeError or ValueError for arguments that do not fit
  into a message.
  """

  def __init__(self, target='127.0.0.1:50051', *, timeout: float | None = 60.0,
               tls: bool | access.TLS = False, token: access.Token = None,
               allow_plaintext_token: bool = False, only_healthy: bool = True,
               retry=RetryPolicy(), service_config=None, channel_options=()):
    super().__init__(timeout, retry)
    self._tls = tls = access.TLS() if tls is True else tls or None
    self._authorization = access.Authorization(target, tls, token,
                                               allow_plaintext_token)
    self._channel = _open(
        grpc, target,
        _channel_options(service_config, channel_options, tls, only_healthy), tls)
    self._stub = pb_grpc.AttentionServiceStub(self._channel)
    self._closed = threading.Event()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self):
    """Closes the connection, and ends all calls on it."""
    self._closed.set()
    self._channel.close()

  def _run(self, steps):
    try:
      step = next(steps)
      while True:
        try:
          result = self._perform(step)
        except grpc.RpcError as rpc_error:
          step = steps.throw(_failure(rpc_error, self._tls))
        except ValueError as closed:
          # grpc says in this way that another thread has closed the channel.
          if not self._closed.is_set():
            raise
          raise errors.Cancelled(grpc.StatusCode.CANCELLED,
                                 'the client was closed') from closed
        else:
          step = steps.send(result)
    except StopIteration as end:
      return end.value

  def _perform(self, step):
    if isinstance(step, exchange.Pause):
      return self._closed.wait(step.seconds)
    call = getattr(self._stub, step.method)
    metadata = self._authorization.metadata()
    if not step.receive:
      return call(step.request, timeout=step.timeout, metadata=metadata)
    messages = call(step.request, timeout=step.timeout, metadata=metadata)
    try:
      for message in messages:
        step.receive(message)
    finally:
      messages.cancel()  # does nothing, unless `receive` raised
    return None


class AsyncClient(calls.Calls):
  """A Client for asyncio. It connects in the event loop of its first call, and can be
  used only in that loop from then on. You can create it before a loop runs.

  If you cancel a task, its call is cancelled on the server, too.
  """

  def __init__(self, target='127.0.0.1:50051', *, timeout: float | None = 60.0,
               tls: bool | access.TLS = False, token: access.Token = None,
               allow_plaintext_token: bool = False, only_healthy: bool = True,
               retry=RetryPolicy(), service_config=None, channel_options=()):
    super().__init__(timeout, retry)
    self._target = target
    self._tls = access.TLS() if tls is True else tls or None
    self._authorization = access.Authorization(target, self._tls, token,
                                               allow_plaintext_token)
    self._options = _channel_options(service_config, channel_options, self._tls,
                                     only_healthy)
    self._loop = None
    self._channel = None
    self._stub = None
    self._closed = asyncio.Event()

  async def __aenter__(self):
    return self

  async def __aexit__(self, *_):
    await self.close()

  async def close(self):
    """Closes the connection, and ends all calls on it."""
    self._closed.set()
    if self._channel:
      self._check_loop()
      await self._channel.close()

  def _check_loop(self):
    if self._loop is not asyncio.get_running_loop():
      raise RuntimeError('this AsyncClient belongs to the event loop of its '
                         'first call; create another one for this loop')

  def _connect(self):
    if self._closed.is_set():
      raise ValueError('this AsyncClient is closed')
    if not self._channel:
      self._loop = asyncio.get_running_loop()
      self._channel = _open(grpc.aio, self._target, self._options, self._tls)
      self._stub = pb_grpc.AttentionServiceStub(self._channel)
    self._check_loop()

  async def _run(self, steps):
    self._connect()
    try:
      step = next(steps)
      while True:
        try:
          result = await self._perform(step)
        except grpc.RpcError as rpc_error:
          step = steps.throw(_failure(rpc_error, self._tls))
        except asyncio.CancelledError:
          # gRPC ends the calls of a closed channel as if their tasks were
          # cancelled, and a TaskGroup would then not report the error.
          if not self._closed.is_set() or _is_cancelled(asyncio.current_task()):
            raise
          raise errors.Cancelled(grpc.StatusCode.CANCELLED,
                                 'the client was closed') from None
        else:
          step = steps.send(result)
    except StopIteration as end:
      return end.value

  async def _perform(self, step):
    if isinstance(step, exchange.Pause):
      try:
        return await asyncio.wait_for(self._closed.wait(), step.seconds)
      except asyncio.TimeoutError:
        return False
    call = getattr(self._stub, step.method)
    metadata = self._authorization.metadata()
    if not step.receive:
      return await call(step.request, timeout=step.timeout, metadata=metadata)
    messages = call(step.request, timeout=step.timeout, metadata=metadata)
    ends = []
    messages.add_done_callback(lambda ended: ends.append(_error_of(ended)))
    try:
      async for message in messages:
        step.receive(message)
    except grpc.aio.AioRpcError as error:
      # If a call ends while a message is being written, grpc.aio replaces the
      # received status by INTERNAL (grpc/grpc#36066).
      if error.code() is grpc.StatusCode.INTERNAL and ends:
        raise ends[0] from None
      raise
    finally:
      messages.cancel()  # does nothing, unless `receive` raised
    return None
