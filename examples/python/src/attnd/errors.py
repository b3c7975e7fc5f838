"""The exceptions that failed calls raise, with the details from the server."""

import dataclasses

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
import grpc


@dataclasses.dataclass(frozen=True)
class FieldViolation:
  """A field that is wrong."""
  field: str  # the path from the root of the request, such as "key.shape[3]"
  description: str  # what was expected and what was received


class AttndError(Exception):
  """The error of a failed call. There is a subclass for each usual status code.

  It can be pickled and copied with all of its attributes, so a worker process can
  raise it. As with every exception, __cause__ is not copied.
  """

  def __init__(self, code, message, reason='', field_violations=(),
               retry_delay=None):
    # Pickle and copy call the class again with these arguments.
    super().__init__(code, message, reason, field_violations, retry_delay)
    self.code = code  # a grpc.StatusCode
    self.message = message
    self.reason = reason  # such as "INVALID_FIELD"; empty if gRPC failed
    self.field_violations = tuple(field_violations)
    self.retry_delay = retry_delay  # in seconds; None if waiting does not help

  def __str__(self):
    return f'{self.code.name}: {self.message}'

  @property
  def field(self):
    """The path of the first wrong field, or None if no field is wrong."""
    return self.field_violations[0].field if self.field_violations else None


class InvalidArgument(AttndError):
  """The request is wrong, whatever the state of the server is."""


class ResourceExhausted(AttndError):
  """The request is too large, or the server is busy if retry_delay is set."""


class Unavailable(AttndError):
  """The server cannot be reached, or it is draining."""


class DeadlineExceeded(AttndError):
  """The timeout has passed. The server has stopped computing, too."""


class Cancelled(AttndError):
  """The call was cancelled."""


class FailedPrecondition(AttndError):
  """The server does not have this feature turned on."""


class Unauthenticated(AttndError):
  """The call has no valid token. Pass token= to the client."""


class PermissionDenied(AttndError):
  """The caller is known, but its token is not for this call."""


class NotFound(AttndError):
  """The server does not know the shared region, or no longer knows it."""


class Unimplemented(AttndError):
  """The server does not support the request."""


class Internal(AttndError):
  """If `reason` is set, the server has a bug. If `reason` is empty, gRPC failed in this
  process, in the network or in the server."""


_CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
}


def from_rpc_error(error, hint=''):
  """Returns the AttndError for a grpc.RpcError, of a synchronous or asyncio call.
  `hint` is added to its message."""
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
      error.code(), (error.details() or '') + hint, reason, violations, retry_delay)


def _details(error):
  for key, value in error.trailing_metadata() or ():
    if key == 'grpc-status-details-bin':
      try:
        return status_pb2.Status.FromString(value).details
      except DecodeError:  # the code and the message still say what failed
        return ()
  return ()
