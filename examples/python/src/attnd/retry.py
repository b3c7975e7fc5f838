"""Decides whether and when a failed call is retried. The client does the waiting."""

import dataclasses
import enum
import math
import numbers
import random
import time

from attnd import errors

_NO_DEADLINE_SECONDS = 1e9  # 30 years; gRPC cannot count much further


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
  """Says how a client retries: exponential backoff with jitter. Times are in seconds.

  The client retries a call after UNAVAILABLE, after a CANCELLED that the caller did
  not request, and after RESOURCE_EXHAUSTED if the server says when to retry
  (google.rpc.RetryInfo), but not before that time. It makes attempts until the
  deadline of the call. Repeating a call of attnd is always safe, because a call
  changes nothing on the server.
  """
  max_attempts: int | None = None  # including the first one; 1 = no retries
  initial_backoff: float = 0.1
  max_backoff: float = 2.0
  multiplier: float = 2.0

  def __post_init__(self):
    if self.max_attempts is not None and not (
        _is_number(self.max_attempts, numbers.Integral) and
        self.max_attempts >= 1):
      raise ValueError('max_attempts: expected a whole number of 1 or more, or '
                       f'None for no limit, got {self.max_attempts!r}')
    for name, least in (('initial_backoff', 0), ('max_backoff', 0),
                        ('multiplier', 1)):
      value = getattr(self, name)
      # Without a pause, the client would call a stopped server in a busy loop.
      if not (_is_number(value, numbers.Real) and value >= least and value > 0 and
              value < math.inf):
        raise ValueError(f'{name}: expected a finite number '
                         f'{"of 1 or more" if least else "above 0"}, got '
                         f'{value!r}')


class Timeout(enum.Enum):
  """The default for the timeout of a call. None cannot be the default, because it
  means no deadline."""
  OF_CLIENT = 'the timeout of the client'


def checked_timeout(timeout):
  """Returns `timeout` as a float in seconds, or None if there is no deadline."""
  if timeout is None:
    return None
  if not _is_number(timeout, numbers.Real):
    raise TypeError(f'timeout: expected seconds, or None for no deadline, got '
                    f'{timeout!r}')
  if not timeout > 0:  # NaN too
    raise ValueError(f'timeout: expected more than 0 seconds, or None for no '
                     f'deadline, got {timeout!r}')
  return float(timeout) if timeout < _NO_DEADLINE_SECONDS else None


def _is_number(value, kind):
  return isinstance(value, kind) and not isinstance(value, bool)


class Attempts:
  """The attempts of one call, which share its deadline. `timeout` is a result of
  checked_timeout."""

  def __init__(self, policy, timeout):
    self._policy = policy
    self._start = time.monotonic()
    self._deadline = None if timeout is None else self._start + timeout
    self._failed = 0
    self._failure = None  # the error of the newest attempt, as text
    self._note = None  # what to add to the error that ends the call
    self._backoff = policy.initial_backoff
    self._most = policy.max_attempts

  def remaining(self):
    """Returns the seconds that are left for the next attempt. None = no deadline."""
    if self._deadline is None:
      return None
    return max(self._deadline - time.monotonic(), 0)

  def end(self):
    """Makes the current attempt the last one."""
    self._most = 1

  def delay_after(self, error):
    """Returns the seconds to wait before the next attempt. Returns None if `error`
    ends the call; the caller then raises final(error)."""
    self._failed += 1
    before, self._failure = self._failure, str(error)
    if not _may_pass(error):
      # The deadline may just have passed during a retry of another error.
      if before and isinstance(error, errors.DeadlineExceeded):
        self._note = (f'in attempt {self._failed}; the one before it failed with '
                      f'{before}')
      return None
    # The server names the same time to all clients, so add a random time.
    delay = (error.retry_delay or 0) + random.uniform(
        0, min(self._backoff, self._policy.max_backoff))
    self._backoff = min(self._backoff * self._policy.multiplier,
                        self._policy.max_backoff)
    remaining = self.remaining()
    if (self._most is not None and self._failed >= self._most or
        remaining is not None and delay >= remaining):
      if before:
        self._note = (f'tried {self._failed} times within '
                      f'{time.monotonic() - self._start:.1f} s')
      return None
    return delay

  def final(self, error):
    """Returns `error`, which ended the call, with a note about earlier attempts."""
    if not self._note:
      return error
    return type(error)(error.code, f'{error.message} ({self._note})',
                       error.reason, error.field_violations, error.retry_delay)


def _may_pass(error):
  if isinstance(error, errors.ResourceExhausted):
    return error.retry_delay is not None
  return isinstance(error, (errors.Unavailable, errors.Cancelled))
