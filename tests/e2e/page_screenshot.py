"""./dev page --screenshot: takes the picture of the page on the admin port that
is in docs/. A server computes attention meanwhile, so that the page has a load
to show."""

import argparse
import os
import pathlib
import threading

import numpy as np
from playwright.sync_api import expect, sync_playwright

from support import stubs
from support.client import Client
from support.server import Server, open_channel

BUDGET = '--memory-budget-bytes=8589934592'
PROBLEM = ('?num_q_heads=32&num_kv_heads=8&head_dim=128&dtype=DATA_TYPE_BF16'
           '&seq_len=16Ki&concurrency=4&options.causal=CAUSAL_TOP_LEFT'
           '&transport=TRANSPORT_STREAM')
LOAD_SECONDS = 40


def call_until(stop, generated, address, length):
  tensor = np.zeros((1, 8, length, 128), np.float32)
  with open_channel(address) as channel:
    client = Client(generated, channel)
    while not stop.is_set():
      client.attention(tensor, tensor, tensor)
      stop.wait(0.2)


def take(address, output):
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
        executable_path=os.environ.get('CHROMIUM', '/usr/bin/chromium'),
        args=['--no-sandbox'])
    page = browser.new_page(viewport={'width': 1240, 'height': 1000},
                            color_scheme='light')
    page.goto(address + PROBLEM)
    page.wait_for_timeout(LOAD_SECONDS * 1000)  # fills the charts of the load
    expect(page.locator('#results')).to_have_attribute('aria-busy', 'false')
    page.screenshot(path=output, full_page=True)
    browser.close()


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--build', type=pathlib.Path, required=True)
  parser.add_argument('--output', type=pathlib.Path, required=True)
  flags = parser.parse_args()
  generated = stubs.load(flags.build)
  with Server(flags.build / 'server' / 'attnd', BUDGET,
              admin='127.0.0.1:0') as server:
    stop = threading.Event()
    callers = [
        threading.Thread(target=call_until,
                         args=(stop, generated, server.tcp, length))
        for length in (256, 512, 1024)]
    for caller in callers:
      caller.start()
    try:
      take(f'http://{server.admin}/', flags.output)
    finally:
      stop.set()
      for caller in callers:
        caller.join()
  print(f'wrote {flags.output}')


if __name__ == '__main__':
  main()
