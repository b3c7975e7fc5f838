"""The exceptions of failed calls, with the details that the server sent."""

import dataclasses

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
import grpc


@dataclasses.dataclass(frozen=True)
class FieldViolation:
  """A field at fault."""
  field: str  # its path from the request's root: "key.shape[3]"
  description: str  # what was expected and what came


class AttndError(Exception):
  """A call that failed; the subclasses below are by code.

  It can be pickled and copied with all that it holds, so that a worker process
  may raise it. As with every exception, __cause__ stays behind.
  """

  def __init__(self, code, message, reason='', field_violations=(),
               retry_delay=None):
    # Pickle and copy call the class with these again.
    super().__init__(code, message, reason, field_violations, retry_delay)
    self.code = code  # a grpc.StatusCode
    self.message = message
    self.reason = reason  # "INVALID_FIELD"; empty where gRPC itself failed
    self.field_violations = tuple(field_violations)
    self.retry_delay = retry_delay  # seconds; None where waiting is no help

  def __str__(self):
    return f'{self.code.name}: {self.message}'

  @property
  def field(self):
    """The path of the first field at fault; None where none is."""
    return self.field_violations[0].field if self.field_violations else None


class InvalidArgument(AttndError):
  """The request is wrong in itself."""


class ResourceExhausted(AttndError):
  """The request is too large; or, if retry_delay is set, the server is busy."""


class Unavailable(AttndError):
  """No server can be reached, or it is draining."""


class DeadlineExceeded(AttndError):
  """The timeout passed; the server has stopped computing too."""


class Cancelled(AttndError):
  """The call was cancelled."""


class FailedPrecondition(AttndError):
  """The server does not have this feature turned on."""


class NotFound(AttndError):
  """A shared region that the server does not know (any more)."""


class Unimplemented(AttndError):
  """This server cannot do that."""


class Internal(AttndError):
  """A bug of the server if `reason` is set. If it is empty, gRPC failed: in this
  process, on the way, or in the server."""


_CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
}


def from_rpc_error(error):
  """The AttndError of a grpc.RpcError, synchronous or asyncio."""
  reason, violations, retry_delay = '', [], None
  for detail in _details(error):
    if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
      reason = error_details_pb2.ErrorInfo.FromString(detail.value).reason
    elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
      bad = error_details_pb2.BadRequest.FromString(detail.value)
      violations = [
          FieldViolation(v.field, v.description) for v in bad.field_violations
      ]
    elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
      retry = error_details_pb2.RetryInfo.FromString(detail.value)
      retry_delay = retry.retry_delay.ToTimedelta().total_seconds()
  return _CLASSES.get(error.code(), AttndError)(
      error.code(), error.details(), reason, violations, retry_delay)


def _details(error):
  for key, value in error.trailing_metadata() or ():
    if key == 'grpc-status-details-bin':
      try:
        return status_pb2.Status.FromString(value).details
      except DecodeError:  # the code and the message still say what failed
        return ()
  return ()
