"""Errors that are pickled, copied and raised in other processes."""

import copy
import dataclasses
import inspect
import pathlib
import pickle
import subprocess
import sys

import attnd
from attnd import errors
import grpc
import pytest

VIOLATIONS = (attnd.FieldViolation('key.shape[3]', 'expected 2, got 3'),
              attnd.FieldViolation('value', 'expected a tensor, got none'))
CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass)
           if issubclass(c, attnd.AttndError)]
COPIES = {'copy': copy.copy, 'deepcopy': copy.deepcopy} | {
    f'pickle {protocol}':
        lambda error, protocol=protocol: pickle.loads(
            pickle.dumps(error, protocol))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
}


@pytest.fixture(params=COPIES)
def duplicate(request):
  return COPIES[request.param]


@pytest.mark.parametrize('kind', CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_keeps_its_details(kind, duplicate):
  code = next((c for c, k in errors._CLASSES.items() if k is kind),
              grpc.StatusCode.DATA_LOSS)
  error = kind(code, 'why', 'SOME_REASON', VIOLATIONS, retry_delay=1.5)
  error.__notes__ = ['seen by a worker']
  try:
    raise error from grpc.RpcError('which gRPC does not let us pickle')
  except attnd.AttndError as caught:
    twin = duplicate(caught)
  assert type(twin) is kind and twin is not error
  assert str(twin) == str(error) == f'{code.name}: why'
  assert twin.__dict__ == error.__dict__
  assert (twin.code, twin.message, twin.reason, twin.field_violations,
          twin.retry_delay) == (code, 'why', 'SOME_REASON', VIOLATIONS, 1.5)
  assert twin.field == 'key.shape[3]'
  assert twin.__notes__ == ['seen by a worker']


def test_an_error_without_details(duplicate):
  twin = duplicate(attnd.Unavailable(grpc.StatusCode.UNAVAILABLE, 'gone'))
  assert (twin.reason, twin.field, twin.retry_delay) == ('', None, None)


def test_what_belongs_to_errors(duplicate):
  assert duplicate(VIOLATIONS[0]) == VIOLATIONS[0]
  refused = duplicate(attnd.RegionRefused('size: expected less'))
  assert type(refused) is attnd.RegionRefused
  assert str(refused) == 'size: expected less'
  with pytest.raises(dataclasses.FrozenInstanceError):
    duplicate(VIOLATIONS[0]).field = 'other'


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_a_refusal_in_a_worker_reaches_the_parent(server, method):
  script = pathlib.Path(__file__).with_name('pool_worker.py')
  # If a pool cannot unpickle the error of a worker, it waits for ever.
  done = subprocess.run([sys.executable, '-B', script, method, server.tcp],
                        capture_output=True, text=True, timeout=120,
                        check=False)
  assert done.returncode == 0, done.stderr
  by_executor, by_pool, region, answer = done.stdout.splitlines()
  assert by_executor == by_pool
  name, text, code, field, reason = by_executor.split(' | ')
  assert name == 'InvalidArgument'
  assert text.startswith('INVALID_ARGUMENT: ') and 'expected 2' in text
  assert code == 'StatusCode.INVALID_ARGUMENT'
  assert (field, reason) == ('key.shape[1]', 'INVALID_FIELD')
  assert region.startswith('RegionRefused | why |')
  assert answer == '(2, 4) float32 True'


def test_details_that_cannot_be_read_do_not_hide_the_failure():

  class Failed(grpc.RpcError):

    def code(self):
      return grpc.StatusCode.UNAVAILABLE

    def details(self):
      return 'draining'

    def trailing_metadata(self):
      return (('grpc-status-details-bin', b'\xff'),)

  error = errors.from_rpc_error(Failed())
  assert type(error) is attnd.Unavailable
  assert error.message == 'draining' and error.retry_delay is None
