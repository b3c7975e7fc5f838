"""Decides whether and when a failed call is tried again. The client does the
waiting."""

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
  """Exponential backoff with jitter, in seconds.

  A call is tried again after UNAVAILABLE, after a CANCELLED that the caller did
  not ask for, and after RESOURCE_EXHAUSTED if the server says when to come back
  (google.rpc.RetryInfo), but not before that time. Attempts go on until the
  call's deadline. Every call of attnd may be repeated: it changes nothing on the
  server.
  """
  max_attempts: int | None = None  # the first one included; 1 = never again
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
      # A pause of 0 would call a server that is down in an endless loop.
      if not (_is_number(value, numbers.Real) and value >= least and value > 0 and
              value < math.inf):
        raise ValueError(f'{name}: expected a finite number '
                         f'{"of 1 or more" if least else "above 0"}, got '
                         f'{value!r}')


class Timeout(enum.Enum):
  """The default of a call's timeout. It is not None, which means no deadline."""
  OF_CLIENT = 'the timeout of the client'


def checked_timeout(timeout):
  """`timeout` as a float in seconds, or None if there is no deadline."""
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
  """The attempts of one call, which share its deadline. `timeout` is what
  checked_timeout returned."""

  def __init__(self, policy, timeout):
    self._policy = policy
    self._start = time.monotonic()
    self._deadline = None if timeout is None else self._start + timeout
    self._failed = 0
    self._failure = None  # what the newest one said
    self._note = None  # what to add to the failure that ends the call
    self._backoff = policy.initial_backoff
    self._most = policy.max_attempts

  def remaining(self):
    """Seconds for the next attempt; None = no deadline."""
    if self._deadline is None:
      return None
    return max(self._deadline - time.monotonic(), 0)

  def end(self):
    """Lets no attempt follow this one."""
    self._most = 1

  def delay_after(self, error):
    """Seconds to wait before the next attempt; None where `error` ends the call,
    and final(error) is to be raised."""
    self._failed += 1
    before, self._failure = self._failure, str(error)
    if not _may_pass(error):
      # The deadline may only have come in the middle of one more attempt.
      if before and isinstance(error, errors.DeadlineExceeded):
        self._note = (f'in attempt {self._failed}; the one before it failed with '
                      f'{before}')
      return None
    # The server names the same time to everybody, so add a random one.
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
    """`error`, which ended the call, with a note of what was tried before it."""
    if not self._note:
      return error
    return type(error)(error.code, f'{error.message} ({self._note})',
                       error.reason, error.field_violations, error.retry_delay)


def _may_pass(error):
  if isinstance(error, errors.ResourceExhausted):
    return error.retry_delay is not None
  return isinstance(error, (errors.Unavailable, errors.Cancelled))
