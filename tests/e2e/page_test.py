"""Tests the page on the admin port in a headless Chromium: its figures are
those of the rpc, everybody can use it, and it says what is wrong.

`./dev page` runs this file. It is not one of ctest's, because it needs Debian's
chromium, which takes 400 MB. page_screenshot.py takes the picture in docs/.
"""

import contextlib
import os
import re
import subprocess
import urllib.parse

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from support.server import Server, clean_environment

LARGEST = 2**63 - 1
FIGURES = [
    'naive_bytes', 'flash_bytes', 'input_bytes', 'output_bytes',
    'workspace_bytes', 'wire_bytes', 'peak_per_request_bytes', 'peak_bytes',
    'required_message_bytes', 'flops'
]
GOALS = ['max_seq_len', 'max_batch', 'max_concurrency']
WAIT_MS = 120_000
BUDGET = '--memory-budget-bytes=8589934592'


@pytest.fixture(scope='module')
def browser():
  with sync_playwright() as playwright:
    # Chromium refuses to sandbox root, and containers run tests as root.
    with playwright.chromium.launch(
        executable_path=os.environ.get('CHROMIUM', '/usr/bin/chromium'),
        args=['--no-sandbox']) as launched:
      yield launched


@pytest.fixture(scope='module')
def server(attnd):
  with Server(attnd, BUDGET, admin='127.0.0.1:0') as running:
    yield running


@pytest.fixture
def site(server):
  return f'http://{server.admin}/'


@pytest.fixture
def visit(browser):
  """visit(address, **context) opens a page that must not log errors, fail or
  ask another host."""
  complaints = []
  with contextlib.ExitStack() as stack:

    def run(address, may_fail=False, **context):
      opened = stack.enter_context(browser.new_context(**context))
      page = opened.new_page()
      page.set_default_timeout(WAIT_MS)
      origin = '{0.scheme}://{0.netloc}/'.format(
          urllib.parse.urlsplit(address))
      page.on('request', lambda request: complaints.append(request.url)
              if not request.url.startswith((origin, 'data:')) else None)
      page.on('pageerror', lambda error: complaints.append(str(error)))
      # The browser logs each answer with a status of 400 or more, and each
      # request without an answer. Only tests of such answers allow that.
      page.on('console', lambda message: complaints.append(message.text)
              if message.type in ('error', 'warning') and not may_fail
              else None)
      page.goto(address)
      settle(page)
      return page

    yield run
    assert not complaints


def settle(page):
  """Waits until the page shows the answers to what its form says."""
  expect(page.locator('#results')).to_have_attribute(
      'aria-busy', 'false', timeout=WAIT_MS)


def fill(page, **values):
  """Enters values, by the names of the inputs with _ for a dot."""
  for name, value in values.items():
    element = page.locator(f'[name="{name}"]')
    kind = element.evaluate('e => e.type')
    if kind == 'checkbox':
      element.set_checked(bool(value))
    elif kind == 'select-one':
      element.select_option(value)
    else:
      element.fill(str(value))
  settle(page)


def number(page, selector):
  """Returns the exact number that an element shows."""
  return int(page.locator(f'{selector} data').first.get_attribute('value'))


def text_of_bytes(count):
  """Writes a number of bytes as the page should, by other arithmetic."""
  if count == LARGEST:
    return 'more than 8 EiB'
  for power, unit in enumerate(['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB']):
    if count < 1024**(power + 1):
      break
  if power == 0:
    return f'{count} B'
  tenths = (count * 20 // 1024**power + 1) // 2
  if tenths >= 10240:
    return f'1.0 {["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][power]}'
  return f'{tenths // 10}.{tenths % 10} {unit}'


def random_problem(rng):
  """Returns (what to enter, the same as fields of the request)."""
  def length(most):
    return int(2**rng.uniform(0, most))

  kv_heads = int(rng.choice([1, 2, 3, 8]))
  heads = kv_heads * int(rng.choice([1, 1, 4, 7]))
  # One in six is so large that some numbers exceed 64 bits.
  seq_len = length(60 if rng.random() < 1 / 6 else 22)
  entered = {
      'num_q_heads': heads, 'num_kv_heads': kv_heads, 'seq_len': seq_len,
      'head_dim': int(rng.integers(1, 257)),
      'batch': length(6), 'concurrency': length(9),
      'dtype': str(rng.choice(['DATA_TYPE_F32', 'DATA_TYPE_F16',
                               'DATA_TYPE_BF16'])),
      'transport': str(rng.choice(['TRANSPORT_INLINE', 'TRANSPORT_STREAM',
                                   'TRANSPORT_SHARED_MEMORY'])),
      'q_len': '', 'kv_len': '', 'threads': '',
  }
  if rng.random() < 0.3:
    entered['q_len'] = length(12)
  if rng.random() < 0.2:
    entered['kv_len'] = length(16)
  if rng.random() < 0.3:
    entered['threads'] = int(rng.integers(1, 65))
  fields = {name: value for name, value in entered.items() if value != ''}
  options = fields.setdefault('options', {})
  entered['options.causal'] = str(
      rng.choice(['', 'CAUSAL_TOP_LEFT', 'CAUSAL_BOTTOM_RIGHT']))
  if entered['options.causal']:
    options['causal'] = entered['options.causal']
  entered['options.window_left'] = length(10) if rng.random() < 0.3 else ''
  if entered['options.window_left'] != '':
    options['window_left'] = entered['options.window_left']
  entered['options.return_lse'] = bool(rng.random() < 0.5)
  options['return_lse'] = entered['options.return_lse']
  entered['scores'] = str(
      rng.choice(['', 'mask', 'batch-mask', 'bias', 'head-bias']))
  lengths = [fields.get('q_len', seq_len), fields.get('kv_len', seq_len)]
  shape = {
      'batch-mask': [fields['batch'], 1, *lengths],
      'head-bias': [heads, *lengths]
  }.get(entered['scores'], lengths)
  if 'mask' in entered['scores']:
    options['mask'] = {'dtype': 'DATA_TYPE_BOOL', 'shape': shape}
  elif entered['scores']:
    options['bias'] = {'dtype': entered['dtype'], 'shape': shape}
  return entered, fields


def of_length(fields, length):
  """Returns the request with a sequence of `length`: the key length, if the
  query length is set."""
  fields = {**fields, 'seq_len': length, 'options': {**fields['options']}}
  if 'q_len' in fields:
    fields.pop('kv_len', None)
  lengths = [fields.get('q_len', length), fields.get('kv_len', length)]
  for name in ('mask', 'bias'):
    if name in fields['options']:
      tensor = fields['options'][name]
      fields['options'][name] = {
          **tensor, 'shape': tensor['shape'][:-2] + lengths}
  return fields


def length_of(fields):
  if 'q_len' in fields:
    return fields.get('kv_len', fields['seq_len'])
  return fields['seq_len']


def test_the_figures_are_those_of_the_rpc(client, visit, site, rng):
  # On a slow machine, the page asks before all values of a problem are entered,
  # and the server refuses a number of heads that does not fit yet.
  page = visit(site, may_fail=True)
  saturated = 0
  for _ in range(50):
    entered, fields = random_problem(rng)
    gib = int(rng.choice([0, 0, 1, 3, 64]))
    fill(page, **entered, budget=gib or '', budget_unit='GiB')
    assert page.locator('#refused').inner_text() == ''

    def ask(**request):
      return client.stub.MemoryEstimate(
          client.pb.MemoryEstimateRequest(**request), timeout=60)

    got = ask(**fields)
    for name in FIGURES:
      row = f'#figures tr[data-figure={name}]'
      want = getattr(got, name)
      assert number(page, row) == want, name
      if name.endswith('_bytes'):
        shown = page.locator(f'{row} td').first.text_content()
        assert shown == text_of_bytes(want), name
      saturated += want == LARGEST
    for name in ('peak_bytes', 'flash_bytes', 'naive_bytes'):
      assert number(page, f'#{name}') == getattr(got, name)
      assert page.locator(f'#{name} data').text_content() == text_of_bytes(
          getattr(got, name))
    largest = {}
    for name in GOALS:
      request = (of_length(fields, length_of(fields))
                 if name == 'max_seq_len' else fields)
      largest[name] = getattr(
          ask(**request, **{f'{name}_for_budget_bytes': gib << 30}), name)
      assert number(page, f'#{name}') == largest[name], name
    fits = (largest['max_concurrency'] >= fields['concurrency']
            if gib else got.fits)
    assert page.locator('#verdict').inner_text() == (
        '✓ It fits' if fits else '✕ It does not fit')

    grown = page.evaluate(
        "[...document.querySelectorAll('#growth tbody tr')].map(row => "
        "[...row.querySelectorAll('data')].map(data => data.value))")
    assert len(grown) >= 8
    for length, flash, naive, peak in rng.choice(grown, 2, replace=False):
      got = ask(**of_length(fields, int(length)))
      assert (int(flash), int(naive), int(peak)) == (
          got.flash_bytes, got.naive_bytes, got.peak_bytes), length
  assert saturated > 0


def test_the_longest_sequences_are_those_of_the_rpc(client, visit, site):
  page = visit(site + '?seq_len=4096&num_q_heads=32&num_kv_heads=8'
               '&transport=TRANSPORT_STREAM')
  rows = page.evaluate(
      "[...document.querySelectorAll('#longest tbody tr')].map(row => "
      "[...row.querySelectorAll('data')].map(data => data.value))")
  assert len(rows) == 7
  for count, longest in rows:
    got = client.stub.MemoryEstimate(client.pb.MemoryEstimateRequest(
        num_q_heads=32, num_kv_heads=8, transport='TRANSPORT_STREAM',
        concurrency=int(count), max_seq_len_for_budget_bytes=0), timeout=60)
    assert int(longest) == got.max_seq_len, count


def test_numbers_that_are_too_large(visit, site):
  page = visit(site + '?seq_len=1000000000000000')
  assert page.locator('#verdict').inner_text() == '✕ It does not fit'
  assert page.locator('#naive_bytes data').inner_text() == 'more than 8 EiB'
  assert '9223372036854775807' not in page.locator('body').inner_text()
  assert 'NaN' not in page.locator('body').inner_html()
  assert 'Infinity' not in page.locator('body').inner_html()


@pytest.mark.parametrize('query,name', [
    ('seq_len=8&num_q_heads=3&num_kv_heads=2', 'num_q_heads'),
    ('seq_len=-4', 'seq_len'),
    ('num_q_heads=2', 'seq_len'),
    ('seq_len=99999999999999999999', 'seq_len'),
    ('seq_len=8&concurrency=-1', 'concurrency'),
    ('seq_len=8&head_dim=5000', 'head_dim'),
    ('seq_len=8&options.window_left=-1', 'options.window_left'),
])
def test_what_the_server_refuses_is_shown_at_its_input(
    visit, site, query, name):
  page = visit(f'{site}?{query}', may_fail=True)
  element = page.locator(f'[name="{name}"]')
  assert page.locator('[aria-invalid=true]').count() == 1
  assert element.get_attribute('aria-invalid') == 'true'
  message = page.locator(f'[id="{element.get_attribute("aria-describedby")}"]')
  # The words are those of the server.
  answer = page.request.get(f'{site}v1/memory-estimate?{query}').json()
  assert message.inner_text() == answer['error']['message']
  assert answer['error']['field'] == name
  assert page.locator('#refused').inner_text().startswith('Please correct')


@pytest.mark.parametrize('name,entered', [
    ('seq_len', 'many'), ('num_q_heads', '1.5'), ('batch', '0x10'),
    ('budget', '-1'), ('budget', 'all'),
    ('seq_len', '<img src=x onerror=alert(1)>')])
def test_what_is_no_number_is_shown_at_its_input(visit, site, name, entered):
  page = visit(site)
  before = number(page, '#peak_bytes')
  fill(page, **{name: entered})
  element = page.locator(f'[name="{name}"]')
  assert element.get_attribute('aria-invalid') == 'true'
  message = page.locator(f'[id="{element.get_attribute("aria-describedby")}"]')
  assert entered in message.inner_text()
  assert page.locator('img').count() == 0
  # The older figures stay, and say that they are older.
  assert 'older' in page.locator('#refused').inner_text()
  assert number(page, '#peak_bytes') == before
  assert page.locator('.answer.stale').count() == page.locator('.answer').count()
  fill(page, **{name: '8'})
  assert page.locator('[aria-invalid], .stale').count() == 0
  assert page.locator('#refused').inner_text() == ''


def test_without_figures_none_are_called_older(visit, site):
  page = visit(f'{site}?seq_len=x')
  assert page.locator('#refused').inner_text() == (
      'Please correct: Sequence length (N).')


def test_one_thread_is_not_several(attnd, visit):
  with Server(attnd, BUDGET, '--threads=1', admin='127.0.0.1:0') as server:
    page = visit(f'http://{server.admin}/')
    expect(page.locator('#server')).to_contain_text('· 1 thread ·')


@pytest.mark.parametrize('width', [320, 390, 1280])
def test_texts_of_the_page_have_room(visit, site, width):
  """The placeholder of the budget is not cut off, and the texts of the lines
  in a chart are above its curves and within the page."""
  page = visit(site, viewport={'width': width, 'height': 800})
  assert page.locator('#budget').get_attribute('placeholder') == (
      'server: 8.0 GiB')
  assert page.evaluate("""() => {
    const budget = document.getElementById('budget');
    budget.value = budget.placeholder;
    return budget.scrollWidth <= budget.clientWidth;
  }""")
  for figure in ('#growth', '#longest'):
    texts = page.locator(f'{figure} .mark-text').evaluate_all(
        "all => all.map(e => [e.textContent, e.getBoundingClientRect()])"
        ".map(([text, box]) => [text, box.left, box.right, box.bottom])")
    top = page.locator(f'{figure} .axis').bounding_box()['y']
    vertical = [each for each in texts if not each[0].startswith('Budget')]
    assert vertical
    for text, left, right, bottom in vertical:
      assert bottom <= top, text
      assert 0 <= left and right <= width, text


def test_units_of_numbers(visit, site):
  page = visit(site)
  for entered, length in [('16Ki', 16384), ('16 ki', 16384), ('2M', 2_000_000),
                          ('1,000', 1000), ('3k', 3000)]:
    fill(page, seq_len=entered)
    got = page.request.get(
        f'{site}v1/memory-estimate?num_q_heads=32&num_kv_heads=8&head_dim=128'
        f'&dtype=DATA_TYPE_BF16&concurrency=2&seq_len={length}').json()
    assert number(page, '#naive_bytes') == int(got['naive_bytes']), entered


def test_the_address_has_the_inputs(visit, site):
  page = visit(site)
  fill(page, seq_len='64Ki', num_kv_heads='', transport='TRANSPORT_STREAM',
       budget='1.5', budget_unit='TiB', scores='mask',
       **{'options.return_lse': True})
  again = visit(page.url)
  values = ('[...document.querySelectorAll("form [name]")].map(e => '
            'e.type == "checkbox" ? e.checked : e.value)')
  for name in ('budget', 'scores', 'seq_len'):
    assert f'{name}=' in page.url
  assert again.evaluate(values) == page.evaluate(values)
  assert number(again, '#max_seq_len') == number(page, '#max_seq_len')
  # An address of the page means what the same address of the API means.
  api = visit(site + '?seq_len=777')
  got = page.request.get(f'{site}v1/memory-estimate?seq_len=777').json()
  assert number(api, '#peak_bytes') == int(got['peak_bytes'])


def test_the_command_gets_the_same_answer(visit, site):
  page = visit(site)
  fill(page, scores='mask')
  command = page.locator('#curl').text_content()
  address = command.removeprefix("curl '").removesuffix("'")
  got = page.request.get(address).json()
  assert number(page, '#peak_bytes') == int(got['peak_bytes'])


@pytest.mark.parametrize('transport', ['inline', 'stream', 'shared-memory'])
def test_the_container_limit_is_that_of_attnctl(
    visit, site, server, build_dir, transport):
  kind = f'TRANSPORT_{transport.upper().replace("-", "_")}'
  page = visit(f'{site}?seq_len=4096&num_q_heads=32&num_kv_heads=8'
               f'&concurrency=3&transport={kind}')
  done = subprocess.run(
      [build_dir / 'client' / 'attnctl', f'--server={server.unix}', 'estimate',
       '--seq-len=4096', '--num-q-heads=32', '--num-kv-heads=8',
       '--concurrency=3', f'--transport={transport}', '--limits=flags'],
      env=clean_environment(), capture_output=True, text=True, timeout=60,
      check=True)
  mib = int(re.search(r'--memory=(\d+)m', done.stdout)[1])
  assert number(page, '#limit_bytes') == mib << 20
  shares = page.locator('#container td data').evaluate_all(
      'all => all.map(data => data.value)')
  assert len(shares) == 3 and sum(map(int, shares)) == mib << 20


@pytest.mark.parametrize('length,reason', [
    ('2M', 'the call needs a message of more than'),
    # The operations of this problem do not fit 64 bits.
    ('100M', 'seq_len: expected a smaller number, because the problem is too '
     'large to be computed')])
def test_a_problem_that_fits_no_container(visit, site, length, reason):
  page = visit(f'{site}?seq_len={length}')
  assert page.locator('#container').inner_text().startswith(
      f'No container is large enough: {reason}')


def test_an_older_answer_does_not_replace_a_newer_one(visit, site):
  page = visit(site)
  held = []
  page.route(lambda url: 'seq_len=1111&' in url + '&',
             lambda route: held.append(route))
  page.locator('#seq_len').fill('1111')
  while not held:
    page.wait_for_timeout(10)
  fill(page, seq_len='2222')
  want = number(page, '#peak_bytes')
  for route in held:
    with contextlib.suppress(Exception):  # the page has dropped the question
      route.continue_()
  fill(page, seq_len='2222')
  assert number(page, '#peak_bytes') == want
  got = page.request.get(
      f'{site}v1/memory-estimate?num_q_heads=32&num_kv_heads=8&head_dim=128'
      '&dtype=DATA_TYPE_BF16&concurrency=2&seq_len=2222').json()
  assert want == int(got['peak_bytes'])


def test_quick_typing_asks_once(visit, site):
  page = visit(site)
  asked = []
  page.on('request', lambda request: asked.append(request.url))
  page.evaluate("""() => {
    const input = document.getElementById('batch');
    for (const text of ['1', '12', '123']) {
      input.value = text;
      input.dispatchEvent(new Event('input', {bubbles: true}));
    }
  }""")
  settle(page)
  assert any('batch=123' in url for url in asked)
  assert not any('batch=12&' in url + '&' for url in asked)


def test_the_load_is_live(client, visit, site, tensors):
  page = visit(site)
  row = page.locator('#methods tr[data-method=Attention]')
  expect(row).to_have_count(1)
  before = int(row.locator('td').last.inner_text())
  for _ in range(3):
    client.attention(*tensors)
  expect(row.locator('td').last).to_have_text(str(before + 3))
  expect(row.locator('td').first).not_to_have_text('0')
  methods = page.locator('#methods tbody th').all_inner_texts()
  service = client.pb.DESCRIPTOR.services_by_name['AttentionService']
  assert methods == [method.name for method in service.methods]
  info = page.request.get(f'{site}v1/server-info').json()
  for name in ('in_flight', 'reserved_bytes', 'busy_threads', 'connections'):
    assert number(page, f'#{name}') >= 0
  assert 'memory budget 8.0 GiB' in page.locator('#server').inner_text()
  assert info['version'] in page.locator('#server').inner_text()


def test_updates_can_be_paused(visit, site):
  page = visit(site)
  page.clock.install()
  page.reload()
  settle(page)
  polls = []
  page.on('request', lambda request: polls.append(request.url))
  for _ in range(4):
    page.clock.run_for(2000)
    page.wait_for_load_state('networkidle')
  assert len(polls) >= 2 and all('server-info' in url for url in polls)
  page.locator('#pause').click()
  page.wait_for_load_state('networkidle')
  polls.clear()
  page.clock.run_for(20_000)
  assert not polls
  page.locator('#seq_len').fill('512')
  page.clock.run_for(1000)
  settle(page)
  assert any('memory-estimate' in url for url in polls)


def test_a_server_that_stops_and_comes_back(attnd, visit):
  with Server(attnd, BUDGET, admin='127.0.0.1:0') as first:
    admin = first.admin
    page = visit(f'http://{admin}/', may_fail=True)
    peak = number(page, '#peak_bytes')
  expect(page.locator('#down')).to_contain_text('gets no answers')
  fill(page, seq_len='8192')
  assert page.locator('.answer.stale').count() > 0
  assert number(page, '#peak_bytes') == peak
  with Server(attnd, BUDGET, admin=admin):
    expect(page.locator('#down')).to_be_empty()
    expect(page.locator('.stale')).to_have_count(0)
    settle(page)
    assert number(page, '#peak_bytes') > peak
    page.close()


VIEWS = [
    {'viewport': {'width': width, 'height': 800}, 'color_scheme': scheme}
    for width in (320, 360, 1280, 2200) for scheme in ('light', 'dark')
]


@pytest.mark.parametrize(
    'view', VIEWS,
    ids=lambda view: f'{view["viewport"]["width"]}-{view["color_scheme"]}')
@pytest.mark.parametrize('query', ['', '?seq_len=-1', '?seq_len=100M'])
def test_accessible_at_every_width_and_in_both_themes(
    visit, site, view, query):
  page = visit(site + query, may_fail=bool(query), **view)
  page.locator('details').evaluate_all('all => all.forEach(e => e.open = true)')
  expect(page.locator('#methods tbody tr')).not_to_have_count(0)
  assert page.evaluate('document.documentElement.scrollWidth') <= (
      view['viewport']['width'])
  found = Axe().run(page)
  assert found.violations_count == 0, found.generate_report()
  background = page.evaluate('getComputedStyle(document.body).backgroundColor')
  bright = sum(map(int, background[4:-1].split(','))) > 384
  assert bright == (view['color_scheme'] == 'light')


def test_everything_by_keyboard(visit, site):
  page = visit(site)
  page.keyboard.press('Tab')
  assert page.evaluate('document.activeElement.className') == 'skip'
  names = page.locator('form [name]').evaluate_all('all => all.map(e => e.name)')
  reached = []
  for _ in range(80):
    page.keyboard.press('Tab')
    focused = page.evaluate("""() => {
      const e = document.activeElement;
      const style = getComputedStyle(e);
      return {name: e.name || e.id || e.tagName, outline: style.outlineStyle,
              width: parseFloat(style.outlineWidth),
              seen: e.getBoundingClientRect().bottom <= innerHeight + 1};
    }""")
    if focused['name'] == 'BODY':
      break
    assert focused['outline'] != 'none' and focused['width'] >= 2, focused
    assert focused['seen'], focused
    reached.append(focused['name'])
    if focused['name'] == 'seq_len':
      page.keyboard.type('123')
    elif focused['name'] == 'options.return_lse':
      page.keyboard.press('Space')
    elif focused['name'] == 'SUMMARY':
      page.keyboard.press('Enter')
    elif focused['name'] == 'pause':
      page.keyboard.press('Space')
  assert [name for name in reached if name in names] == names
  assert reached.count('SUMMARY') == page.locator('details').count()
  assert page.locator('details:not([open])').count() == 0
  assert page.locator('#pause').get_attribute('aria-pressed') == 'true'
  settle(page)
  # Typing replaces what Tab has selected.
  assert page.locator('#seq_len').input_value() == '123'
  assert 'seq_len=123&' in page.url


def test_what_a_screen_reader_hears(visit, site):
  page = visit(site)
  for landmark in ('banner', 'main'):
    expect(page.get_by_role(landmark)).to_have_count(1)
  for title in ('Problem', 'Does it fit?', 'Memory as the sequence grows',
                'Container limit', 'Load of this server now'):
    expect(page.get_by_role('region', name=title, exact=True)).to_have_count(1)
  for label in ('Query heads', 'KV heads', 'Sequence length (N)', 'Type',
                'Memory budget of all requests', 'Also return lse'):
    expect(page.get_by_label(label, exact=True)).to_have_count(1)
  status = page.get_by_role('status')
  fill(page, seq_len='1024')
  short = status.inner_text()
  assert short.startswith('It fits: 2 requests at once hold')
  fill(page, seq_len='100M')
  assert status.inner_text().startswith('It does not fit')
  fill(page, num_q_heads='many')
  expect(page.get_by_role('alert').filter(
      has_text='Please correct: Query heads')).to_have_count(1)


def test_reduced_motion(visit, site):
  moving = ('[...document.querySelectorAll("*")].filter(e => '
            'parseFloat(getComputedStyle(e).transitionDuration) > 0 || '
            'getComputedStyle(e).animationName != "none").length')
  assert visit(site, reduced_motion='no-preference').evaluate(moving) > 0
  assert visit(site, reduced_motion='reduce').evaluate(moving) == 0


def test_the_page_cannot_ask_other_hosts(visit, site):
  page = visit(site, may_fail=True)
  blocked = page.evaluate("""() => new Promise(done => {
    addEventListener('securitypolicyviolation', e => done(e.blockedURI));
    fetch('http://127.0.0.2:9/').catch(() => setTimeout(done, 1000, 'nothing'));
  })""")
  assert blocked.startswith('http://127.0.0.2:9')
  policy = page.request.get(site).headers['content-security-policy']
  assert "default-src 'none'" in policy and "connect-src 'self'" in policy
