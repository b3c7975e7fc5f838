"""What these tests share with the end-to-end ones: stubs, client, server."""

import pathlib
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / 'tests' / 'e2e'))

from support import stubs as stubs_module  # noqa: E402


@pytest.fixture(scope='session')
def stubs():
  return stubs_module.load(REPOSITORY / 'build')
