"""The parts of the end-to-end tests that these tests use, too: stubs, client
and server."""

import pathlib
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / 'tests' / 'e2e'))

from support import stubs as stubs_module  # noqa: E402


@pytest.fixture(scope='session')
def stubs():
  return stubs_module.load(REPOSITORY / 'build')
