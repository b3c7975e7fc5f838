"""The two clients: what waits, and what waits without blocking."""

import asyncio
import time

import grpc

from attnd import calls, errors, streams
from attnd.retry import Attempts, RetryPolicy
from attnd.v1 import attention_pb2_grpc as pb_grpc

# The server has limits of its own, and says which one was met.
_CHANNEL_OPTIONS = [('grpc.max_send_message_length', -1),
                    ('grpc.max_receive_message_length', -1)]


class Client(calls.Calls):
  """One server, by "host:port" or "unix:PATH". Thread-safe.

  `timeout` in seconds is for calls that name none. Raises AttndError, and
  TypeError or ValueError for arguments that no message can hold.
  """

  def __init__(self, target='127.0.0.1:50051', *, timeout=60.0,
               retry=RetryPolicy()):
    self._channel = grpc.insecure_channel(target, _CHANNEL_OPTIONS)
    self._stub = pb_grpc.AttentionServiceStub(self._channel)
    self._timeout = timeout
    self._retry = retry

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self):
    """Ends the connection and whatever runs on it."""
    self._channel.close()

  def attention_stream(self, query, key, value, *, timeout=None, **options):
    """attention() for tensors that no message holds. Not tried again."""
    request = calls.attention_request(query, key, value, options)
    response = streams.Response()
    try:
      for message in self._stub.AttentionStream(
          streams.requests(request),
          timeout=self._timeout if timeout is None else timeout):
        response.add(message)
    except grpc.RpcError as error:
      raise errors.from_rpc_error(error) from error
    return calls.attention_result(response.joined(), query)

  def benchmark(self, *, on_progress=None, timeout=None, **fields):
    """The BenchmarkResult for fields of BenchmarkRequest. Not tried again.

    on_progress is called with each BenchmarkProgress.
    """
    request = calls.benchmark_request(fields)
    try:
      for event in self._stub.Benchmark(
          request, timeout=self._timeout if timeout is None else timeout):
        if event.HasField('progress') and on_progress:
          on_progress(event.progress)
      return event.result
    except grpc.RpcError as error:
      raise errors.from_rpc_error(error) from error

  def _call(self, method, request, timeout, decode=lambda reply: reply):
    attempts = Attempts(self._retry,
                        self._timeout if timeout is None else timeout)
    while True:
      try:
        reply = getattr(self._stub, method)(
            request, timeout=attempts.remaining())
        return decode(reply)
      except grpc.RpcError as rpc_error:
        error = errors.from_rpc_error(rpc_error)
        delay = attempts.delay_after(error)
        if delay is None:
          raise error from rpc_error
      time.sleep(delay)


class AsyncClient(calls.Calls):
  """Client for asyncio; to be made in the event loop that uses it.

  Cancelling a task cancels its call, on the server too.
  """

  def __init__(self, target='127.0.0.1:50051', *, timeout=60.0,
               retry=RetryPolicy()):
    self._channel = grpc.aio.insecure_channel(target, _CHANNEL_OPTIONS)
    self._stub = pb_grpc.AttentionServiceStub(self._channel)
    self._timeout = timeout
    self._retry = retry

  async def __aenter__(self):
    return self

  async def __aexit__(self, *_):
    await self.close()

  async def close(self):
    """Ends the connection and whatever runs on it."""
    await self._channel.close()

  async def attention_stream(self, query, key, value, *, timeout=None,
                             **options):
    """As Client.attention_stream."""
    request = calls.attention_request(query, key, value, options)
    response = streams.Response()
    try:
      async for message in self._stub.AttentionStream(
          streams.requests(request),
          timeout=self._timeout if timeout is None else timeout):
        response.add(message)
    except grpc.RpcError as error:
      raise errors.from_rpc_error(error) from error
    return calls.attention_result(response.joined(), query)

  async def benchmark(self, *, on_progress=None, timeout=None, **fields):
    """As Client.benchmark."""
    request = calls.benchmark_request(fields)
    try:
      async for event in self._stub.Benchmark(
          request, timeout=self._timeout if timeout is None else timeout):
        if event.HasField('progress') and on_progress:
          on_progress(event.progress)
      return event.result
    except grpc.RpcError as error:
      raise errors.from_rpc_error(error) from error

  async def _call(self, method, request, timeout, decode=lambda reply: reply):
    attempts = Attempts(self._retry,
                        self._timeout if timeout is None else timeout)
    while True:
      try:
        reply = await getattr(self._stub, method)(
            request, timeout=attempts.remaining())
        return decode(reply)
      except grpc.RpcError as rpc_error:
        error = errors.from_rpc_error(rpc_error)
        delay = attempts.delay_after(error)
        if delay is None:
          raise error from rpc_error
      await asyncio.sleep(delay)
