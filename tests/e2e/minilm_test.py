"""Sends the inputs of a real transformer layer in every way that the server
supports, and compares the answers with float64."""

import pytest

from support import minilm, reference


@pytest.fixture(params=['tcp', 'unix'])
def over(request, server, connect):
  return connect(getattr(server, request.param))


@pytest.mark.parametrize('payload', ['data', 'values'])
@pytest.mark.parametrize('case', minilm.CASES, ids=lambda case: case.title)
def test_within_the_error_of_pytorch(over, payload, case):
  response = over.attention(
      *minilm.inputs(), values=payload == 'values', causal=case.causal,
      return_lse=case.part == 'lse')
  assert response.output.WhichOneof('payload') == payload
  assert response.HasField('lse') == (case.part == 'lse')
  reference.assert_close(
      over.array(getattr(response, case.part)), minilm.load(case.expected),
      case.bound)


@pytest.mark.parametrize('case', minilm.CASES, ids=lambda case: case.title)
def test_our_float64_reference_agrees_with_the_data(case):
  output, lse = reference.attention(*minilm.inputs(), causal=case.causal)
  reference.assert_close(
      lse if case.part == 'lse' else output, minilm.load(case.expected), 1e-12)
