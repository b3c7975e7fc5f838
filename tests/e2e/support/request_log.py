"""Reads the log of attnd in both of its formats."""

import json
import re

FORMATS = ('text', 'json')
TIME = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z')
LEVELS = ('debug', 'info', 'warning', 'error', 'critical')
_TEXT_LINE = re.compile(
    r'\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})\] \[attnd\] '
    r'\[(debug|info|warning|error|critical)\] (.*)')
_FIELD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|[^ "=\\]+)')
# The fields of each request, in their order. Those in _OPTIONAL are missing
# where a request has none.
_KEYS = ['id', 'trace_id', 'span_id', 'method', 'code', 'reason', 'peer',
         'received_bytes', 'sent_bytes', 'total_us', 'queue_us', 'compute_us']
_OPTIONAL = ('trace_id', 'span_id', 'reason')


def _is_number(key):
  return key.endswith(('_bytes', '_us'))


def _value(key, text):
  if _is_number(key):
    return int(text)
  return json.loads(text) if text.startswith('"') else text


def _text_line(line):
  found = _TEXT_LINE.fullmatch(line)
  assert found, line
  fields = {'time': found[1], 'level': found[2], 'message': found[3]}
  if found[3].startswith('request id='):
    rest = found[3].removeprefix('request')
    pairs = _FIELD.findall(rest)
    assert ''.join(f' {name}={value}' for name, value in pairs) == rest, line
    assert len(dict(pairs)) == len(pairs), line
    fields |= {name: _value(name, value) for name, value in pairs}
    fields['message'] = 'request'
  return fields


def _json_line(line):
  def no_twin(pairs):
    assert len(dict(pairs)) == len(pairs), line
    return dict(pairs)

  fields = json.loads(line, object_pairs_hook=no_twin)
  assert TIME.fullmatch(fields['time']), line
  assert fields['level'] in LEVELS, line
  assert isinstance(fields['message'], str), line
  return fields


def parse(log, log_format):
  """Returns the fields of each line, which must all be right. `log` has the
  bytes of whole lines."""
  text = log.decode()  # fails unless it is UTF-8
  assert text.endswith('\n')
  lines = text.split('\n')[:-1]
  of = {'text': _text_line, 'json': _json_line}[log_format]
  parsed = [of(line) for line in lines]
  for line in parsed:
    if line['message'] == 'request':
      _check_request(line)
    elif log_format == 'json':
      assert list(line) == ['time', 'level', 'message'], line
  return parsed


def _check_request(line):
  keys = list(line)[3:]
  assert keys == [k for k in _KEYS if k in keys or k not in _OPTIONAL], line
  for key in keys:
    assert isinstance(line[key], int if _is_number(key) else str), line
  assert ('reason' in line) <= (line['code'] != 'OK'), line


def requests(log, log_format):
  """Returns the fields of the lines of requests."""
  found = [line for line in parse(log, log_format)
           if line['message'] == 'request']
  ids = [line['id'] for line in found]
  assert len(set(ids)) == len(ids)
  return found
