"""When a failed call is tried again. Decides only; who waits is the client."""

import dataclasses
import random
import time

from attnd import errors


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
  """Exponential backoff with jitter, in seconds.

  Tried again is UNAVAILABLE, and RESOURCE_EXHAUSTED where the server says that
  waiting helps (google.rpc.RetryInfo); never before the time that it names, and
  never where the deadline would pass meanwhile. Every call of attnd may be
  repeated: none has an effect beside its answer.
  """
  max_attempts: int = 5  # the first one included; 1 = never again
  initial_backoff: float = 0.05
  max_backoff: float = 2.0
  multiplier: float = 2.0


class Attempts:
  """The attempts of one call, which share its deadline."""

  def __init__(self, policy, timeout):
    self._policy = policy
    self._deadline = time.monotonic() + timeout
    self._made = 0

  def remaining(self):
    """Seconds for the next attempt."""
    return max(self._deadline - time.monotonic(), 0)

  def delay_after(self, error):
    """Seconds to wait before the next attempt; None = there is none."""
    self._made += 1
    worth_it = (isinstance(error, errors.Unavailable) or
                isinstance(error, errors.ResourceExhausted) and
                error.retry_delay is not None)
    if not worth_it or self._made >= self._policy.max_attempts:
      return None
    backoff = min(
        self._policy.initial_backoff * self._policy.multiplier**(self._made - 1),
        self._policy.max_backoff)
    # On top of the server's time: it told everyone the same.
    delay = (error.retry_delay or 0) + random.uniform(0, backoff)
    return delay if delay < self.remaining() else None
