"""Runs every expression of deploy/ with a real Prometheus on a live server, and
checks the alerts with promtool.

A renamed metric would make an expression empty, and so an alert silent forever.
"""

import json
import re
import threading
import urllib.request

import pytest
import yaml

from support import work
from support.certificates import server_flags
from support.client import Client
from support.prometheus import RULES, Prometheus, promtool
from support.server import Server, open_channel, poll_until
from support.stubs import REPOSITORY

DASHBOARD = REPOSITORY / 'deploy' / 'grafana' / 'attnd.json'
ADAPTER = (REPOSITORY / 'deploy' / 'kubernetes' / 'queue-scaling' /
           'prometheus-adapter-rules.yaml')
RULE_TESTS = RULES.with_name('attnd-rules-test.yml')


def rules():
  return [rule for group in yaml.safe_load(RULES.read_text())['groups']
          for rule in group['rules']]


def without_threshold(expression):
  """Returns an alert's expression without its comparison, which has samples
  also while the alert is silent."""
  (bare, n) = re.subn(r' (>|<|==) [\d.]+$', '', expression)
  assert n == 1, expression
  return bare


def dashboard_expressions():
  for panel in json.loads(DASHBOARD.read_text())['panels']:
    for target in panel['targets']:
      yield (target['expr'].replace('$__rate_interval', '10s')
             .replace('$instance', '.*').replace('$job', 'attnd'))


def adapter_expressions():
  (rule,) = yaml.safe_load(ADAPTER.read_text())['rules']
  yield rule['seriesQuery']
  yield (rule['metricsQuery'].replace('<<.GroupBy>>', 'namespace,pod')
         .replace('<<.LabelMatchers>>', 'namespace="n",pod="p"'))


@pytest.fixture(scope='module')
def prometheus(attnd, stubs, tmp_path_factory):
  """Prometheus with a server that has TLS and tokens, and calls all the time."""
  flags, metadata = server_flags(tmp_path_factory.mktemp('access'))
  with Server(attnd, *flags, admin='127.0.0.1:0') as server:
    end = threading.Event()

    def call():
      with open_channel(server.unix) as channel:
        client = Client(stubs, channel)
        small = work.small_request(client)
        while not end.wait(0.01):
          client.stub.SelfAttention(small, metadata=metadata)

    caller = threading.Thread(target=call)
    with Prometheus(server.admin, {'namespace': 'n', 'pod': 'p'}) as running:
      caller.start()
      try:
        yield running
      finally:
        end.set()
        caller.join()


def test_every_expression_has_samples(prometheus):
  expressions = [
      *(rule['expr'] for rule in rules() if 'record' in rule),
      *(without_threshold(rule['expr']) for rule in rules()
        if 'alert' in rule),
      *dashboard_expressions(), *adapter_expressions()]
  assert len(expressions) > 35

  def has_numbers(expression):
    return [s for s in prometheus.query(expression) if s['value'][1] != 'NaN']

  for expression in expressions:
    poll_until(lambda e=expression: has_numbers(e), 60,
               f'samples of {expression}')
  for rule in rules():
    if 'alert' in rule:
      assert not prometheus.query(
          f'ALERTS{{alertname="{rule["alert"]}", alertstate="firing"}}'), rule


def test_an_expression_of_a_metric_that_does_not_exist_is_empty(prometheus):
  """Shows that the test above can fail."""
  assert not prometheus.query('rate(attnd_call_total[10s])')


def test_the_adapter_reads_0_while_there_are_no_calls(attnd):
  """Without a value, the HorizontalPodAutoscaler would keep the pods."""
  with Server(attnd, admin='127.0.0.1:0') as server:
    with Prometheus(server.admin, {'namespace': 'n', 'pod': 'p'}) as running:
      _, expression = adapter_expressions()
      (sample,) = poll_until(lambda: running.query(expression), 60,
                             'a sample without calls')
      assert float(sample['value'][1]) == 0
      assert sample['metric'] == {'namespace': 'n', 'pod': 'p'}


def test_promtool_finds_nothing_wrong_with_the_metrics(attnd):
  with Server(attnd, admin='127.0.0.1:0') as server:
    with urllib.request.urlopen(f'http://{server.admin}/metrics') as answer:
      text = answer.read().decode()
  done = promtool('check', 'metrics', stdin=text)
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
  done = promtool('check', 'metrics',
                  stdin=text.replace('attnd_calls_total', 'attnd_calls'))
  assert 'attnd_calls counter metrics should have "_total" suffix' in (
      done.stderr)


def test_the_configuration_is_valid():
  done = promtool('check', 'config', RULES.with_name('prometheus.yml'))
  assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_in_trouble_and_is_silent_otherwise():
  done = promtool('test', 'rules', RULE_TESTS)
  assert done.returncode == 0, done.stdout + done.stderr
  alerts = {rule['alert'] for rule in rules() if 'alert' in rule}
  fires, silent = set(), set()
  for test in yaml.safe_load(RULE_TESTS.read_text())['tests']:
    for check in test['alert_rule_test']:
      (fires if check.get('exp_alerts') else silent).add(check['alertname'])
  assert fires == alerts == silent
  page = (REPOSITORY / 'docs' / 'operations.md').read_text()
  assert set(re.findall(r'`(Attnd\w+)`', page)) == alerts


@pytest.mark.parametrize('old,new', [
    ('> 0.01', '> 1'), ('attnd_queue_seconds_sum', 'attnd_queued_seconds_sum')])
def test_a_broken_alert_is_found(tmp_path, old, new):
  text = RULES.read_text()
  assert old in text
  (tmp_path / RULES.name).write_text(text.replace(old, new))
  (tmp_path / RULE_TESTS.name).write_text(RULE_TESTS.read_text())
  assert promtool('test', 'rules', tmp_path / RULE_TESTS.name).returncode != 0
